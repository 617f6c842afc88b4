// Heaviside, sign and ternary, and the backward of those whose surrogate saves a mask.
#include "ops/binarize/binarize.h"

#include <type_traits>

#include "cuda/mask.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Where a tensor holds the numbers (kHeld) the kernel is another: they take registers that the usual one cannot spare.
// Masks are 1 where S saves one, or 0; numbers are those that are held.
// Moves: reads n * T + 8 * numbers, writes n * T + masks * (n / 8).
template <bool kHeld, class Binarizer, class S, class T>
__global__ void __launch_bounds__(kElementwiseThreads) binarize_kernel(
    Binarizer binarizer, S surrogate, const double* parameters, const T* x, T* out, uint8_t* mask, int64_t numel,
    bool aligned) {
  if constexpr (kHeld) {
    if constexpr (S::saves == Saves::mask) surrogate = S(parameters[0], parameters[1]);
    binarizer = with_threshold(binarizer, parameters);
  }
  Vector<T> v[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) v[k] = read_vector(x, vector_begin<T>(k), numel, aligned);
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<T>(k);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      auto value = load(v[k].value[i]);
      if constexpr (S::saves == Saves::mask) {
        bits |= uint32_t(surrogate.passes(value)) << i;
      }
      v[k].value[i] = bit_cast<T>(binarized_bits(binarizer, v[k].value[i], value));
    }
    write_vector(out, begin, numel, aligned, v[k]);
    if constexpr (S::saves == Saves::mask) store_mask_bits<T>(mask, begin, numel, bits);
  }
}

template <class Binarizer, class S, class T>
void launch_binarize(
    const Launcher& launch, Type<T>, const Binarizer& binarizer, const S& surrogate, const Binarized& call) {
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  // A step without a mask reads no number but ternary's threshold.
  constexpr bool reads = S::saves == Saves::mask || std::is_same_v<Binarizer, Ternary>;
  auto kernel = binarize_kernel<false, Binarizer, S, T>;
  if constexpr (reads) {
    if (call.parameters != nullptr) kernel = binarize_kernel<true, Binarizer, S, T>;
  }
  launch(
      kernel, elementwise_blocks<T>(numel), kElementwiseThreads, binarizer, surrogate, call.parameters, x, out,
      mutable_bytes(call.mask), numel, aligned16(x) && aligned16(out));
}

template <class Binarizer>
std::tuple<Tensor, Tensor> binarize(
    const char* op, const Binarizer& binarizer, const Tensor& x, int64_t surrogate, double a, double b,
    const double* parameters = nullptr) {
  const Launcher launch(x, op);
  const Binarized call = prepare_binarize(op, x, surrogate, parameters);
  dispatch_binarize(
      op, x, surrogate, a, b, [&](auto type, const auto& s) { launch_binarize(launch, type, binarizer, s, call); });
  return {call.out, call.mask};
}

std::tuple<Tensor, Tensor> heaviside_cuda(Tensor x, int64_t surrogate, double a, double b) {
  return binarize("heaviside", Heaviside(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> heaviside_from_zero_cuda(Tensor x, int64_t surrogate, double a, double b) {
  return binarize("heaviside_from_zero", HeavisideFromZero(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> sign_cuda(Tensor x, int64_t surrogate, double a, double b) {
  return binarize("sign", Sign(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> ternary_cuda(Tensor x, int64_t surrogate, double a, double b, double threshold) {
  return binarize("ternary", Ternary{threshold}, x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> binarize_held_cuda(Tensor x, std::string step, int64_t surrogate, Tensor parameters) {
  constexpr const char* op = "binarize_held";
  const double* numbers = numbers_of(op, "parameters", parameters, step == "ternary" ? 3 : 2, x);
  return with_binarizer(
      op, step, [&](const auto& binarizer) { return binarize(op, binarizer, x, surrogate, 1, 1, numbers); });
}

// Moves: reads n * U + n / 8, writes n * U.
template <class U>
__global__ void __launch_bounds__(kElementwiseThreads)
    binarize_backward_kernel(const U* grad, const uint8_t* mask, U* out, int64_t numel, bool aligned) {
  Vector<U> v[kChunksPerWarp];
  uint32_t bits[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<U>(k);
    v[k] = read_vector(grad, begin, numel, aligned);
    bits[k] = load_mask_bits<U>(mask, begin, numel);
  }
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
#pragma unroll
    for (int i = 0; i < Vector<U>::size; ++i) v[k].value[i] = bits[k] >> i & 1u ? v[k].value[i] : U(0);
    write_vector(out, vector_begin<U>(k), numel, aligned, v[k]);
  }
}

// Moves: reads n * T + n / 8 + 8 * numbers, writes n * T; numbers are those that a tensor holds.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads) scaled_backward_kernel(
    arithmetic_t<T> factor, const double* held, const T* grad, const uint8_t* mask, T* out, int64_t numel,
    bool aligned) {
  Vector<T> v[kChunksPerWarp];
  uint32_t bits[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<T>(k);
    v[k] = read_vector(grad, begin, numel, aligned);
    bits[k] = load_mask_bits<T>(mask, begin, numel);
  }
  if (held != nullptr) factor = arithmetic_t<T>(*held);
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      v[k].value[i] = bits[k] >> i & 1u ? store<T>(load(v[k].value[i]) * factor) : T{};
    }
    write_vector(out, vector_begin<T>(k), numel, aligned, v[k]);
  }
}

template <class T>
void launch_binarize_backward(
    const Launcher& launch, Type<T>, const Elementwise& call, const Tensor& mask, double factor, const double* held) {
  using U = bits_t<T>;
  const T* grad = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  const bool aligned = aligned16(grad) && aligned16(out);
  if (factor == 1 && held == nullptr) {
    launch(
        binarize_backward_kernel<U>, elementwise_blocks<U>(numel), kElementwiseThreads,
        reinterpret_cast<const U*>(grad), const_bytes(mask), reinterpret_cast<U*>(out), numel, aligned);
  } else {
    launch(
        scaled_backward_kernel<T>, elementwise_blocks<T>(numel), kElementwiseThreads, arithmetic_t<T>(factor), held,
        grad, const_bytes(mask), out, numel, aligned);
  }
}

Tensor backward(const char* op, const Tensor& grad, const Tensor& mask, double factor, const double* held = nullptr) {
  const Launcher launch(grad, op);
  const Elementwise call = prepare_binarize_backward(op, grad, mask);
  dispatch_elements(
      op, "grad", grad, [&](auto type) { launch_binarize_backward(launch, type, call, mask, factor, held); });
  return call.out;
}

Tensor binarize_backward_cuda(Tensor grad, Tensor mask, double factor) {
  return backward("binarize_backward", grad, mask, factor);
}

Tensor binarize_backward_held_cuda(Tensor grad, Tensor mask, Tensor factor) {
  constexpr const char* op = "binarize_backward_held";
  return backward(op, grad, mask, 1, numbers_of(op, "factor", factor, 1, grad));
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("heaviside", TORCH_BOX(&heaviside_cuda));
  m.impl("sign", TORCH_BOX(&sign_cuda));
  m.impl("ternary", TORCH_BOX(&ternary_cuda));
  m.impl("heaviside_from_zero", TORCH_BOX(&heaviside_from_zero_cuda));
  m.impl("binarize_held", TORCH_BOX(&binarize_held_cuda));
  m.impl("binarize_backward", TORCH_BOX(&binarize_backward_cuda));
  m.impl("binarize_backward_held", TORCH_BOX(&binarize_backward_held_cuda));
}

}  // namespace ste_ops
