// Heaviside, sign and ternary, and the backward of those whose surrogate saves a mask.
#include "ops/binarize/binarize.h"

#include "cuda/mask.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Masks are 1 where S saves one, or 0; numbers are those that a tensor holds.
// Moves: reads n * T + 8 * numbers, writes n * T + masks * (n / 8).
template <class Binarizer, class S, class T>
__global__ void __launch_bounds__(kElementwiseThreads) binarize_kernel(
    Binarizer binarizer, S surrogate, const double* parameters, const T* x, T* out, uint8_t* mask, int64_t numel,
    bool aligned) {
  Vector<T> v[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) v[k] = read_vector(x, vector_begin<T>(k), numel, aligned);
  if (parameters != nullptr) {
    if constexpr (S::saves == Saves::mask) surrogate = S(parameters[0], parameters[1]);
    binarizer = with_threshold(binarizer, parameters);
  }
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
  launch(
      binarize_kernel<Binarizer, S, T>, elementwise_blocks<T>(numel), kElementwiseThreads, binarizer, surrogate,
      call.parameters, x, out, mutable_bytes(call.mask), numel, aligned16(x) && aligned16(out));
}

template <class Binarizer>
std::tuple<Tensor, Tensor> binarize(
    const char* op, const Binarizer& binarizer, const Tensor& x, int64_t surrogate, double a, double b,
    const std::optional<Tensor>& parameters, int64_t count = 2) {
  const Launcher launch(x, op);
  const Binarized call = prepare_binarize(op, x, surrogate, parameters, count);
  dispatch_binarize(
      op, x, surrogate, a, b, [&](auto type, const auto& s) { launch_binarize(launch, type, binarizer, s, call); });
  return {call.out, call.mask};
}

std::tuple<Tensor, Tensor> heaviside_cuda(
    Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters, int64_t at_zero) {
  check_at_zero("heaviside", at_zero);
  if (at_zero == 1) return binarize("heaviside", HeavisideFromZero(), x, surrogate, a, b, parameters);
  return binarize("heaviside", Heaviside(), x, surrogate, a, b, parameters);
}

std::tuple<Tensor, Tensor> sign_cuda(
    Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  return binarize("sign", Sign(), x, surrogate, a, b, parameters);
}

std::tuple<Tensor, Tensor> ternary_cuda(
    Tensor x, int64_t surrogate, double a, double b, double threshold, std::optional<Tensor> parameters) {
  return binarize("ternary", Ternary{threshold}, x, surrogate, a, b, parameters, 3);
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
    arithmetic_t<T> factor, const double* factor_pointer, const T* grad, const uint8_t* mask, T* out, int64_t numel,
    bool aligned) {
  Vector<T> v[kChunksPerWarp];
  uint32_t bits[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<T>(k);
    v[k] = read_vector(grad, begin, numel, aligned);
    bits[k] = load_mask_bits<T>(mask, begin, numel);
  }
  if (factor_pointer != nullptr) factor = arithmetic_t<T>(*factor_pointer);
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
    const Launcher& launch, Type<T>, const Elementwise& call, const Tensor& mask, double factor,
    const double* factor_pointer) {
  using U = bits_t<T>;
  const T* grad = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  const bool aligned = aligned16(grad) && aligned16(out);
  if (factor == 1 && factor_pointer == nullptr) {
    launch(
        binarize_backward_kernel<U>, elementwise_blocks<U>(numel), kElementwiseThreads,
        reinterpret_cast<const U*>(grad), const_bytes(mask), reinterpret_cast<U*>(out), numel, aligned);
  } else {
    launch(
        scaled_backward_kernel<T>, elementwise_blocks<T>(numel), kElementwiseThreads, arithmetic_t<T>(factor),
        factor_pointer, grad, const_bytes(mask), out, numel, aligned);
  }
}

Tensor binarize_backward_cuda(Tensor grad, Tensor mask, double factor, std::optional<Tensor> factor_tensor) {
  const Launcher launch(grad);
  const Elementwise call = prepare_binarize_backward(grad, mask);
  const double* factor_pointer = numbers_of("binarize_backward", "factor_tensor", factor_tensor, 1, grad);
  dispatch_elements("binarize_backward", "grad", grad, [&](auto type) {
    launch_binarize_backward(launch, type, call, mask, factor, factor_pointer);
  });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("heaviside", TORCH_BOX(&heaviside_cuda));
  m.impl("sign", TORCH_BOX(&sign_cuda));
  m.impl("ternary", TORCH_BOX(&ternary_cuda));
  m.impl("binarize_backward", TORCH_BOX(&binarize_backward_cuda));
}

}  // namespace ste_ops
