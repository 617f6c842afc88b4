// The backward of the curves and its derivative.
#include "ops/binarize/curve.h"

#include "cuda/vector.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

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

template <class S, class T>
void launch_curve_backward(const Launcher& launch, Type<T>, const S& curve, const CurveCall& call) {
  const T *grad = const_data<T>(call.gradients[0]), *x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  launch(
      curve_backward_kernel<S, T>, elementwise_blocks<T>(numel), kElementwiseThreads, curve, call.parameters, grad, x,
      out, numel, aligned16(grad) && aligned16(x) && aligned16(out));
}

template <class S, class T>
void launch_curve_second(const Launcher& launch, Type<T>, const S& curve, const CurveCall& call) {
  const T *upper = const_data<T>(call.gradients[0]), *grad = const_data<T>(call.gradients[1]);
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  launch(
      curve_second_kernel<S, T>, elementwise_blocks<T>(numel), kElementwiseThreads, curve, call.parameters, upper, grad,
      x, out, numel, aligned16(upper) && aligned16(grad) && aligned16(x) && aligned16(out));
}

Tensor curve_backward_cuda(
    Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  constexpr const char* op = "curve_backward";
  const Launcher launch(x);
  const CurveCall call = prepare_curve(op, {{"grad", &grad}}, x, surrogate, parameters);
  dispatch_curve(
      op, x, surrogate, a, b, [&](auto type, const auto& curve) { launch_curve_backward(launch, type, curve, call); });
  return call.out;
}

Tensor curve_second_cuda(
    Tensor upper, Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  constexpr const char* op = "curve_second";
  const Launcher launch(x);
  const CurveCall call = prepare_curve(op, {{"upper", &upper}, {"grad", &grad}}, x, surrogate, parameters);
  dispatch_curve(
      op, x, surrogate, a, b, [&](auto type, const auto& curve) { launch_curve_second(launch, type, curve, call); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("curve_backward", TORCH_BOX(&curve_backward_cuda));
  m.impl("curve_second", TORCH_BOX(&curve_second_cuda));
}

}  // namespace ste_ops
