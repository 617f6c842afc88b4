#include "ops/binarize.h"

#include "cuda/mask.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Moves: reads n * T, writes n * T + masks * (n / 8); masks is 1 where S saves one, or 0.
template <class Step, class S, class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    binarize_kernel(Step step, S surrogate, const T* x, T* out, uint8_t* mask, int64_t numel, bool aligned) {
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
      v[k].value[i] = bit_cast<T>(step_bits(step, v[k].value[i], value));
    }
    write_vector(out, begin, numel, aligned, v[k]);
    if constexpr (S::saves == Saves::mask) store_mask_bits<T>(mask, begin, numel, bits);
  }
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

// Moves: reads n * T + n / 8, writes n * T.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads) scaled_backward_kernel(
    arithmetic_t<T> factor, const T* grad, const uint8_t* mask, T* out, int64_t numel, bool aligned) {
  Vector<T> v[kChunksPerWarp];
  uint32_t bits[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<T>(k);
    v[k] = read_vector(grad, begin, numel, aligned);
    bits[k] = load_mask_bits<T>(mask, begin, numel);
  }
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      v[k].value[i] = bits[k] >> i & 1u ? store<T>(load(v[k].value[i]) * factor) : T{};
    }
    write_vector(out, vector_begin<T>(k), numel, aligned, v[k]);
  }
}

// Two chunks of both at a time: a curve's arithmetic hides what latency the smaller number in flight leaves.
// Moves: reads 2 * n * T + 8 * parameters, writes n * T; parameters are those that a tensor holds.
template <class S, class T>
__global__ void __launch_bounds__(kElementwiseThreads) curve_backward_kernel(
    S curve, const double* parameters, const T* grad, const T* x, T* out, int64_t numel, bool aligned) {
  constexpr int kAhead = 2;
  if (parameters != nullptr) curve = S(parameters[0], parameters[1]);
#pragma unroll 1
  for (int first = 0; first < kChunksPerWarp; first += kAhead) {
    Vector<T> g[kAhead], v[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      g[k] = read_vector(grad, vector_begin<T>(first + k), numel, aligned);
      v[k] = read_vector(x, vector_begin<T>(first + k), numel, aligned);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int i = 0; i < Vector<T>::size; ++i) {
        auto slope = curve.derivative(load(v[k].value[i]));
        auto product = load(g[k].value[i]) * slope;
        v[k].value[i] = store<T>(slope == 0 ? decltype(slope)(0) : product);
      }
      write_vector(out, vector_begin<T>(first + k), numel, aligned, v[k]);
    }
  }
}

// A chunk of the three at a time.
// Moves: reads 3 * n * T + 8 * parameters, writes n * T; parameters are those that a tensor holds.
template <class S, class T>
__global__ void __launch_bounds__(kElementwiseThreads) curve_second_kernel(
    S curve, const double* parameters, const T* upper, const T* grad, const T* x, T* out, int64_t numel, bool aligned) {
  if (parameters != nullptr) curve = S(parameters[0], parameters[1]);
#pragma unroll 1
  for (int k = 0; k < kChunksPerWarp; ++k) {
    const int64_t begin = vector_begin<T>(k);
    const Vector<T> u = read_vector(upper, begin, numel, aligned), g = read_vector(grad, begin, numel, aligned);
    Vector<T> v = read_vector(x, begin, numel, aligned);
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      auto slope = curve.second(load(v.value[i]));
      auto product = load(u.value[i]) * load(g.value[i]) * slope;
      v.value[i] = store<T>(slope == 0 ? decltype(slope)(0) : product);
    }
    write_vector(out, begin, numel, aligned, v);
  }
}

template <class Step>
std::tuple<Tensor, Tensor> binarize_cuda(
    const char* op, const Step& step, const Tensor& x, int64_t surrogate, double a, double b) {
  Launcher launch(x, op);
  return binarize(
      op, x, surrogate, a, b, [&](auto s, auto type, const void* x, void* out, uint8_t* mask, int64_t numel) {
        using T = typename decltype(type)::type;
        launch(
            binarize_kernel<Step, decltype(s), T>, elementwise_blocks<T>(numel), kElementwiseThreads, step, s,
            static_cast<const T*>(x), static_cast<T*>(out), mask, numel, aligned16(x) && aligned16(out));
      });
}

std::tuple<Tensor, Tensor> heaviside_cuda(Tensor x, int64_t surrogate, double a, double b) {
  return binarize_cuda("heaviside", Heaviside(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> sign_cuda(Tensor x, int64_t surrogate, double a, double b) {
  return binarize_cuda("sign", Sign(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> ternary_cuda(Tensor x, int64_t surrogate, double a, double b, double threshold) {
  return binarize_cuda("ternary", Ternary{threshold}, x, surrogate, a, b);
}

Tensor binarize_backward_cuda(Tensor grad, Tensor mask, double factor) {
  Launcher launch(grad);
  return binarize_backward(grad, mask, [&](auto type, const void* grad, const uint8_t* mask, void* out, int64_t numel) {
    using T = typename decltype(type)::type;
    using U = bits_t<T>;
    bool aligned = aligned16(grad) && aligned16(out);
    if (factor == 1) {
      launch(
          binarize_backward_kernel<U>, elementwise_blocks<U>(numel), kElementwiseThreads, static_cast<const U*>(grad),
          mask, static_cast<U*>(out), numel, aligned);
    } else {
      launch(
          scaled_backward_kernel<T>, elementwise_blocks<T>(numel), kElementwiseThreads, arithmetic_t<T>(factor),
          static_cast<const T*>(grad), mask, static_cast<T*>(out), numel, aligned);
    }
  });
}

Tensor curve_backward_cuda(
    Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  Launcher launch(x);
  return curve(
      "curve_backward", {{"grad", &grad}}, x, surrogate, a, b, parameters,
      [&](auto s, auto type, const double* parameters, const void* const* factors, const void* x, void* out,
          int64_t numel) {
        using T = typename decltype(type)::type;
        launch(
            curve_backward_kernel<decltype(s), T>, elementwise_blocks<T>(numel), kElementwiseThreads, s, parameters,
            static_cast<const T*>(factors[0]), static_cast<const T*>(x), static_cast<T*>(out), numel,
            aligned16(factors[0]) && aligned16(x) && aligned16(out));
      });
}

Tensor curve_second_cuda(
    Tensor upper, Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  Launcher launch(x);
  return curve(
      "curve_second", {{"upper", &upper}, {"grad", &grad}}, x, surrogate, a, b, parameters,
      [&](auto s, auto type, const double* parameters, const void* const* factors, const void* x, void* out,
          int64_t numel) {
        using T = typename decltype(type)::type;
        launch(
            curve_second_kernel<decltype(s), T>, elementwise_blocks<T>(numel), kElementwiseThreads, s, parameters,
            static_cast<const T*>(factors[0]), static_cast<const T*>(factors[1]), static_cast<const T*>(x),
            static_cast<T*>(out), numel,
            aligned16(factors[0]) && aligned16(factors[1]) && aligned16(x) && aligned16(out));
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("heaviside", TORCH_BOX(&heaviside_cuda));
  m.impl("sign", TORCH_BOX(&sign_cuda));
  m.impl("ternary", TORCH_BOX(&ternary_cuda));
  m.impl("binarize_backward", TORCH_BOX(&binarize_backward_cuda));
  m.impl("curve_backward", TORCH_BOX(&curve_backward_cuda));
  m.impl("curve_second", TORCH_BOX(&curve_second_cuda));
}

}  // namespace ste_ops
