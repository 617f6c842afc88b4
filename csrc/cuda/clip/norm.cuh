// The norm of a tensor list, which launches take, and the norm of what one block of threads reads.
#pragma once

#include "cuda/clip/tensor_list.cuh"
#include "ops/clip/norm.h"

namespace ste_ops {

// Leaves the p-norm in `out`, and with `norms` there that of each launched tensor.
void enqueue_norm(const Launches& over, double p, bool has_float64, const Tensor& out, double* norms = nullptr);

// The same of a list, which `over` launches, as the call's results want it.
void enqueue_norms(const Launches& over, const TensorList& list, double p, const Norms& norms);

template <class Terms>
struct CombineTotals {
  __device__ double operator()(double a, double b) const { return Terms::combine(a, b); }
};

template <class Terms>
__device__ double combine_block(double value) {
  return block_reduce(value, CombineTotals<Terms>(), Terms::identity());
}

// pow is a call, which vectors that wait for it would not survive in registers.
template <class Terms>
constexpr int kVectorsAhead = std::is_same<Terms, Powers>::value ? 1 : kAhead;

// A square of a float32 is exact in float64, so that a fused multiply-add has the bits of the two operations: one of a
// GPU's float64 instructions less, of which many give two a clock.
template <bool fused, class Terms, class State, class A>
__device__ State with_term(const Terms& terms, State total, A x) {
  if constexpr (fused && std::is_same<Terms, Squares>::value && std::is_same<A, float>::value) {
    return __fma_rn(double(x), double(x), total);
  } else {
    return Terms::combine(total, State(terms.term(x)));
  }
}

// The total over the block of this thread's elements of x.
template <bool fused = true, class Terms, class T>
__device__ double dense_total(Terms terms, const T* x, int64_t count) {
  using State = typename Terms::template State<arithmetic_t<T>>;
  State total = State(Terms::identity());
  auto add = [&](T element) { total = with_term<fused>(terms, total, load(element)); };
  for_each_vector<kVectorsAhead<Terms>>(
      const_cast<T*>(x), count,
      [&](T*, const Vector<T>& v) {
#pragma unroll
        for (int i = 0; i < Vector<T>::size; ++i) add(v.value[i]);
      },
      [&](T* element) { add(*element); });
  return combine_block<Terms>(double(total));
}

template <class Terms, class T>
__device__ double strided_total(Terms terms, const T* data, const Strided& layout, int64_t begin, int64_t end) {
  double total = Terms::identity();
  auto add = [&](int64_t i) { total = with_term<true>(terms, total, load(data[layout.offset(i)])); };
  const int64_t first = begin + threadIdx.x;
  if constexpr (kVectorsAhead<Terms> == 1) {
#pragma unroll 1
    for (int64_t i = first; i < end; i += blockDim.x) add(i);
  } else {
    for (int64_t i = first; i < end; i += blockDim.x) add(i);
  }
  return combine_block<Terms>(total);
}

// The norm from a first total; where that left the range, from a second look at what total_of(terms) reads.
template <class Terms, class TotalOf>
__device__ double norm_from(Terms terms, double total, bool may_leave, TotalOf total_of) {
  if constexpr (may_leave_range<Terms>(true)) {
    if (may_leave && left_range(total)) {
      const double largest = total_of(Largest{});
      if (!has_scale(largest)) return largest;
      const auto scaled = terms.scaled(largest);
      return scaled.finish(total_of(scaled));
    }
  }
  return terms.finish(total);
}

// The norm of x, by one block. Fused, a row of float16 took 93 registers on 9.0, not 64: one block of a multiprocessor.
template <class Terms, class T>
__device__ double dense_norm(Terms terms, const T* x, int64_t count) {
  constexpr bool fused = !std::is_same<T, Half>::value;
  return norm_from(terms, dense_total<fused>(terms, x, count), may_leave_range<Terms>(sizeof(T) == 8), [&](auto other) {
    return dense_total(other, x, count);
  });
}

}  // namespace ste_ops
