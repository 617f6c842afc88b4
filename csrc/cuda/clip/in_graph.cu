#include "ops/clip/in_graph.h"

#include "cuda/clip/change.cuh"
#include "cuda/clip/norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Vectors of 16 bytes through rule, from x to out.
template <class T, class Rule>
__device__ void rewrite_to(const T* x, T* out, int64_t count, int64_t first, int64_t step, Rule rule) {
  const bool aligned = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  for (int64_t begin = first * Vector<T>::size; begin < count; begin += kAhead * step * Vector<T>::size) {
    Vector<T> v[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) v[k] = read_vector(x, begin + k * step * Vector<T>::size, count, aligned);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int i = 0; i < Vector<T>::size; ++i) v[k].value[i] = rule(v[k].value[i]);
      write_vector(out, begin + k * step * Vector<T>::size, count, aligned, v[k]);
    }
  }
}

// Moves: reads n * T + Change, writes n * T.
template <class T, class Change>
__global__ void __launch_bounds__(kThreads) rewrite_to_kernel(const T* x, T* out, int64_t count, Change change) {
  if (change.leaves()) {
    rewrite_to(x, out, count, grid_index(), grid_stride(), [](T value) { return value; });
  } else {
    rewrite_to(x, out, count, grid_index(), grid_stride(), change.template rule<T>());
  }
}

template <class T>
int64_t rewrite_blocks(int64_t count) {
  return std::min<int64_t>(blocks_for(count, kThreads * Vector<T>::size * kAhead), INT32_MAX);
}

// A block for each row, which it reads twice, the second time from the cache.
// Moves: reads rows * n * T (again all), writes rows * n * T.
template <class Terms, class T>
__global__ void __launch_bounds__(kThreads)
    clip_rows_kernel(Terms terms, const T* x, T* out, int64_t rows, int64_t length, double max_norm) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* source = x + row * length;
    const double norm = dense_norm(terms, source, length);
    const double coefficient = clip_coefficient(norm, max_norm);
    const arithmetic_t<T> factor = leaves_alone(coefficient) ? 1 : arithmetic_t<T>(coefficient);
    rewrite_to(source, out + row * length, length, threadIdx.x, blockDim.x, [factor](T value) {
      return store<T>(load(value) * factor);
    });
  }
}

// A row for each block, by as many threads as it has vectors for.
template <class T>
struct LaunchRows {
  const Launcher& launch;
  const ClipRowsBackward& call;

  template <class Terms>
  void operator()(Terms terms) const {
    const int64_t vectors = blocks_for(call.length, Vector<T>::size);
    const int threads = int(std::min<int64_t>(kThreads, blocks_for(vectors, kWarpSize) * kWarpSize));
    launch(
        clip_rows_kernel<Terms, T>, std::min<int64_t>(call.rows, INT32_MAX), threads, terms,
        static_cast<const T*>(call.x.const_data_ptr()), static_cast<T*>(call.out.mutable_data_ptr()), call.rows,
        call.length, call.max_norm);
  }
};

// The whole device for one row after the other.
template <class T>
void launch_long_rows(const Launcher& launch, const ClipRowsBackward& call) {
  const T* x = static_cast<const T*>(call.x.const_data_ptr());
  T* out = static_cast<T*>(call.out.mutable_data_ptr());
  for (int64_t r = 0; r < call.rows; ++r, x += call.length, out += call.length) {
    const Tensor norm = empty_strided({}, {}, ScalarType::Double, call.x);
    const TensorData row{const_cast<T*>(x), call.length, nullptr, storage_of_type<T>()};
    enqueue_norm(Launches(launch, {row}), call.p, sizeof(T) == 8, norm);
    launch(
        rewrite_to_kernel<T, Scale>, rewrite_blocks<T>(call.length), kThreads, x, out, call.length,
        scale_by(norm, call.max_norm));
  }
}

// From here on a row is worth the launches that spread it over the device.
constexpr int64_t kLongRow = 16 * kBlock;
constexpr int64_t kFewRows = 16;

Tensor clip_gradient_norm_backward_cuda(const Tensor& grad, int64_t row_dims, double max_norm, double norm_type) {
  const Launcher launch(grad);
  const ClipRowsBackward call(grad, row_dims, max_norm, norm_type);
  if (call.rows == 0) return call.out;
  const bool spread = call.length >= kLongRow && call.rows <= kFewRows;
  dispatch_floating(call.op, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    if (spread) return launch_long_rows<T>(launch, call);
    visit_norm(call.p, LaunchRows<T>{launch, call});
  });
  return call.out;
}

Tensor clip_gradient_value_backward_cuda(const Tensor& grad, double clip_value) {
  const Launcher launch(grad);
  const ClipValueBackward call(grad, clip_value);
  if (call.numel == 0) return call.out;
  dispatch_floating(call.op, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(
        rewrite_to_kernel<T, ClampGradient>, rewrite_blocks<T>(call.numel), kThreads,
        static_cast<const T*>(call.x.const_data_ptr()), static_cast<T*>(call.out.mutable_data_ptr()), call.numel,
        ClampGradient{call.clip_value});
  });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("clip_gradient_value_backward", TORCH_BOX(&clip_gradient_value_backward_cuda));
  m.impl("clip_gradient_norm_backward", TORCH_BOX(&clip_gradient_norm_backward_cuda));
}

}  // namespace ste_ops
