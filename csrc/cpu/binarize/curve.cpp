// The backward of the curves and its derivative. The loops exist in float32 and float64 alone; tiles of 16-bit elements
// pass through float32 buffers, so that what takes long to compile is compiled once.
#include "ops/binarize/curve.h"

#include <algorithm>
#include <type_traits>

#include "cpu/widen.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int64_t kCurveTile = 1024;

// An element's gradient times the curve's derivative (order 1) or the derivative's own (order 2).
template <int order, class S, class A>
struct Slope {
  S curve;
  const A *grad, *x;
  A* out;

  STE_OPS_INLINE void operator()(int64_t i) const {
    A slope;
    if constexpr (order == 1) {
      slope = curve.derivative(x[i]);
    } else {
      slope = curve.second(x[i]);
    }
    // Closed by its bits: out of a choice the compiler makes masked loads, which do not start the hardware's
    // prefetching.
    using U = bits_t<A>;
    U open = slope == A(0) ? U(0) : ~U(0);
    out[i] = bit_cast<A>(U(bit_cast<U>(grad[i] * slope) & open));
  }
};

template <class T>
struct MultiplyWidened {
  const T* x;
  arithmetic_t<T>* out;

  STE_OPS_INLINE void operator()(int64_t i) const { out[i] *= load(x[i]); }
};

// Asks for the cache lines of the tile after this one: the arithmetic of a tile is long enough to hide them.
template <class T>
STE_OPS_INLINE void prefetch_tile(const T* tile) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kCurveTile; i += kLine) __builtin_prefetch(tile + i);
}

template <class T>
STE_OPS_INLINE void prefetch_tile_for_write(T* tile) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kCurveTile; i += kLine) __builtin_prefetch(tile + i, 1);
}

// The gradient times s'(x), or the product of two times s''(x).
template <int order, class S, class T>
void curve_range(const S& curve, const T* const (&gradients)[2], const T* x, T* out, int64_t begin, int64_t end) {
  using A = arithmetic_t<T>;
  constexpr bool converts = !std::is_same_v<A, T>;
  A grad[kCurveTile], values[converts ? kCurveTile : 1], results[converts ? kCurveTile : 1];
  for (int64_t i = begin; i < end; i += kCurveTile) {
    const int64_t count = std::min(kCurveTile, end - i), next = i + kCurveTile;
    prefetch_tile(x + next);
    for (int k = 0; k < order; ++k) prefetch_tile(gradients[k] + next);
    prefetch_tile_for_write(out + next);
    if constexpr (order == 1 && !converts) {
      each(Slope<1, S, A>{curve, gradients[0], x, out}, i, i + count);
      continue;
    }
    each(Widen<T>{gradients[0] + i, grad}, 0, count);
    if constexpr (order == 2) each(MultiplyWidened<T>{gradients[1] + i, grad}, 0, count);
    if constexpr (converts) {
      each(Widen<T>{x + i, values}, 0, count);
      each(Slope<order, S, A>{curve, grad, values, results}, 0, count);
      each(Narrow<T>{results, out + i}, 0, count);
    } else {
      each(Slope<order, S, A>{curve, grad, x + i, out + i}, 0, count);
    }
  }
}

template <int order, class S, class T>
void curve_loop(Type<T>, S curve, const CurveCall& call) {
  if (call.parameters) curve = S(call.parameters[0], call.parameters[1]);
  const T* const gradients[2] = {const_data<T>(call.gradients[0]), const_data<T>(call.gradients[1])};
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  parallel_aligned(call.x.numel(), kCurveTile, [&](int64_t begin, int64_t end) {
    curve_range<order>(curve, gradients, x, out, begin, end);
  });
}

Tensor curve_backward_cpu(
    Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  constexpr const char* op = "curve_backward";
  const CurveCall call = prepare_curve(op, {{"grad", &grad}}, x, surrogate, parameters);
  dispatch_curve(op, x, surrogate, a, b, [&](auto type, const auto& curve) { curve_loop<1>(type, curve, call); });
  return call.out;
}

Tensor curve_second_cpu(
    Tensor upper, Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  constexpr const char* op = "curve_second";
  const CurveCall call = prepare_curve(op, {{"upper", &upper}, {"grad", &grad}}, x, surrogate, parameters);
  dispatch_curve(op, x, surrogate, a, b, [&](auto type, const auto& curve) { curve_loop<2>(type, curve, call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("curve_backward", TORCH_BOX(&curve_backward_cpu));
  m.impl("curve_second", TORCH_BOX(&curve_second_cpu));
}

}  // namespace ste_ops
