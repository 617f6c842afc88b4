// The backward of a surrogate whose parameters are learned: the gradient of x and the sums beside it in one pass.
#include "ops/binarize/learned_surrogate.h"

#include "cuda/reduce.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T>
constexpr int64_t kLearnedBlock = kReduceSpan<T> * kReduceRows;

template <class A>
__device__ A closed(A grad, A slope) {
  return slope == A(0) ? A(0) : grad * slope;
}

// A block brings the sums of its elements, a pair; reduce_finish_kernel joins them, each parameter a group.
// Moves: reads 2 * n * T + 8 * numbers, writes n * T + 8 * groups * parts; numbers are the two parameters.
template <class S, class T>
__global__ void __launch_bounds__(kReduceThreads) learned_surrogate_kernel(
    const double* parameters, const T* grad, const T* x, T* of_x, double* sums, int64_t numel, bool aligned) {
  constexpr int N = Vector<T>::size;
  const S surrogate(parameters[0], parameters[1]);
  double of_a = 0, of_b = 0;
#pragma unroll 1
  for (int64_t row = 0; row < kReduceRows; ++row) {
    const int64_t begin = (int64_t(blockIdx.x) * kReduceRows + row) * kReduceSpan<T> + int64_t(threadIdx.x) * N;
    if (begin >= numel) break;
    Vector<T> g = read_vector(grad, begin, numel, aligned);
    const Vector<T> v = read_vector(x, begin, numel, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const auto value = load(v.value[i]), incoming = load(g.value[i]);
      const auto by = surrogate.by_parameters(value);
      if (begin + i < numel) {
        of_a += closed(double(incoming), double(by.a));
        if constexpr (S::parameters > 1) of_b += closed(double(incoming), double(by.b));
      }
      g.value[i] = store<T>(closed(incoming, surrogate.derivative(value)));
    }
    write_vector(of_x, begin, numel, aligned, g);
  }
  of_a = block_sum(of_a);
  if constexpr (S::parameters > 1) of_b = block_sum(of_b);
  if (threadIdx.x == 0) {
    sums[2 * int64_t(blockIdx.x)] = of_a;
    sums[2 * int64_t(blockIdx.x) + 1] = of_b;
  }
}

template <class S, class T>
void launch_learned(const Launcher& launch, Type<T>, const S&, const LearnedCall& call) {
  const T *grad = const_data<T>(call.grad), *x = const_data<T>(call.x);
  T* of_x = mutable_data<T>(call.of_x);
  const int64_t numel = call.x.numel(), parts = blocks_for(numel, kLearnedBlock<T>);
  Tensor kept = empty_vector(2 * parts, ScalarType::Double, call.x);
  double* sums = mutable_data<double>(kept);
  launch(
      learned_surrogate_kernel<S, T>, parts, kReduceThreads, call.parameters, grad, x, of_x, sums, numel,
      aligned16(grad) && aligned16(x) && aligned16(of_x));
  launch(
      reduce_finish_kernel<Additive, KeepTotal<double>>, int64_t(2), kReduceThreads, static_cast<const double*>(sums),
      parts, int64_t(2), KeepTotal<double>{mutable_data<double>(call.of_parameters)});
}

std::tuple<Tensor, Tensor> learned_surrogate_backward_cuda(
    Tensor grad, Tensor x, int64_t surrogate, Tensor parameters) {
  constexpr const char* op = "learned_surrogate_backward";
  const Launcher launch(x);
  const LearnedCall call = prepare_learned(op, grad, x, surrogate, parameters);
  dispatch_learned(op, x, surrogate, [&](auto type, const auto& s) { launch_learned(launch, type, s, call); });
  return {call.of_x, call.of_parameters};
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("learned_surrogate_backward", TORCH_BOX(&learned_surrogate_backward_cuda)); }

}  // namespace ste_ops
