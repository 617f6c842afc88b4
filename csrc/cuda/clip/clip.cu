#include "ops/clip/blocks.h"

#include "cuda/clip/enqueue_norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// How a gradient changes in place. Vectors that come out as they were are not written.
// Moves: reads norm, writes 0; norm is 4 or 8.
struct Scale {
  const void* norm;
  bool float64;
  double max_norm;
  NonFinite nonfinite;

  __device__ Scaling scaling() const {
    double value = float64 ? *static_cast<const double*>(norm) : double(*static_cast<const float*>(norm));
    return ste_ops::scaling(value, max_norm, nonfinite);
  }
  __device__ bool leaves() const { return scaling().action == Scaling::kLeave; }
  template <class T>
  __device__ auto rule() const {
    const Scaling how = scaling();
    const bool zero = how.action == Scaling::kZero;
    arithmetic_t<T> c = arithmetic_t<T>(how.coefficient);
    return [zero, c](T x) { return zero ? T{} : store<T>(load(x) * c); };
  }
};

// Moves: reads 0, writes 0.
struct Clamp {
  double clip_value;
  __device__ bool leaves() const { return false; }
  template <class T>
  __device__ auto rule() const {
    arithmetic_t<T> bound = clip_bound<T>(clip_value);
    return [bound](T x) { return store<T>(clamp_magnitude(load(x), bound)); };
  }
};

// Moves: reads n * T + Change, writes changed * T; changed are the elements of vectors that change.
// Moves (all left alone): reads Change, writes 0.
template <class Change, int N>
__global__ void __launch_bounds__(kThreads) rewrite_kernel(const __grid_constant__ Table<N> table, Change change) {
  if (change.leaves()) return;
  const int g = find_tensor(table);
  const int64_t begin = int64_t(blockIdx.x - table.first_block[g]) * kBlock;
  with_storage(table.storage[g], [&](auto type) {
    using T = typename decltype(type)::type;
    const auto rule = change.template rule<T>();
    rewrite_dense(static_cast<T*>(table.data[g]) + begin, at_most(table.numel[g] - begin, kBlock), rule);
  });
}

// Moves: reads n * T + Change, writes changed * T; changed are the elements of vectors that change.
// Moves (all left alone): reads Change, writes 0.
template <class Change>
__global__ void __launch_bounds__(kThreads) strided_rewrite_kernel(
    void* data, int64_t numel, Storage storage, const __grid_constant__ Strided layout, Change change) {
  if (change.leaves()) return;
  const int64_t begin = int64_t(blockIdx.x) * kBlock, end = at_most(numel, begin + kBlock);
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto rule = change.template rule<T>();
    rewrite_strided(static_cast<T*>(data), layout, begin, end, rule);
  });
}

template <class Change>
void enqueue_rewrite(const Launches& over, Change change) {
  over.run(
      [&](const auto& table, int64_t blocks, int64_t, int64_t) {
        constexpr int N = sizeof(table.numel) / sizeof(int64_t);
        over.launch()(rewrite_kernel<Change, N>, blocks, kThreads, table, change);
      },
      [&](const TensorData& g, int64_t blocks, int64_t, int64_t) {
        over.launch()(strided_rewrite_kernel<Change>, blocks, kThreads, g.data, g.numel, g.storage, *g.layout, change);
      });
}

Scale scale_by(const Tensor& norm, double max_norm, NonFinite nonfinite = NonFinite::kPropagate) {
  return {norm.const_data_ptr(), norm.scalar_type() == ScalarType::Double, max_norm, nonfinite};
}

void total_norm_cuda(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("total_norm", stack[0], Access::kRead, Placed::kAnywhere);
  const double p = checked_norm_type("total_norm", to<double>(stack[1]));
  Tensor out = gradients.empty_norm();
  Launcher launch(out);
  enqueue_norm(Launches(launch, gradients.items), p, gradients.has_float64, out);
  stack[0] = from(out);
}

void total_norms_cuda(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("total_norms", stack[0], Access::kRead, Placed::kAnywhere);
  const double p = checked_norm_type("total_norms", to<double>(stack[1]));
  Tensor out = gradients.empty_norm();
  Launcher launch(out);
  Launches over(launch, gradients.items);
  stack[1] = from(enqueue_norms(over, p, gradients, out));
  stack[0] = from(out);
}

void clip_grads_with_norm_cuda(StableIValue* stack, uint64_t, uint64_t) {
  Tensor norm = to<Tensor>(stack[1]);
  TensorList gradients("clip_grads_with_norm_", stack[0], Access::kWrite, Placed::kAnywhere);
  check_total_norm(gradients, norm);
  const double max_norm = to<double>(stack[2]);
  const NonFinite nonfinite = checked_nonfinite("clip_grads_with_norm_", to<int64_t>(stack[3]));
  Launcher launch(norm);
  enqueue_rewrite(Launches(launch, gradients.items), scale_by(norm, max_norm, nonfinite));
}

void clip_grad_norm_cuda(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("clip_grad_norm_", stack[0], Access::kWrite, Placed::kAnywhere);
  const double max_norm = to<double>(stack[1]);
  const double p = checked_norm_type("clip_grad_norm_", to<double>(stack[2]));
  const NonFinite nonfinite = checked_nonfinite("clip_grad_norm_", to<int64_t>(stack[3]));
  Tensor out = gradients.empty_norm();
  Launcher launch(out);
  Launches over(launch, gradients.items);
  enqueue_norm(over, p, gradients.has_float64, out);
  enqueue_rewrite(over, scale_by(out, max_norm, nonfinite));
  stack[0] = from(out);
}

void clip_grad_norms_cuda(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("clip_grad_norms_", stack[0], Access::kWrite, Placed::kAnywhere);
  const double max_norm = to<double>(stack[1]);
  const double p = checked_norm_type("clip_grad_norms_", to<double>(stack[2]));
  const NonFinite nonfinite = checked_nonfinite("clip_grad_norms_", to<int64_t>(stack[3]));
  Tensor out = gradients.empty_norm();
  Launcher launch(out);
  Launches over(launch, gradients.items);
  Tensor of_each = enqueue_norms(over, p, gradients, out);
  enqueue_rewrite(over, scale_by(out, max_norm, nonfinite));
  stack[0] = from(out);
  stack[1] = from(of_each);
}

void clip_grad_value_cuda(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("clip_grad_value_", stack[0], Access::kWrite, Placed::kAnywhere);
  Launcher launch(gradients.any());
  enqueue_rewrite(Launches(launch, gradients.items), Clamp{to<double>(stack[1])});
}

// In the graph: out of place, on dense memory.

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

// From here on a row is worth the launches that spread it over the device.
constexpr int64_t kLongRow = 16 * kBlock;
constexpr int64_t kFewRows = 16;

Tensor clip_gradient_norm_backward_cuda(const Tensor& grad, int64_t row_dims, double max_norm, double norm_type) {
  checked_norm_type("clip_gradient_norm_backward", norm_type);
  Launcher launch(grad);
  return clip_gradient_norm_backward(
      grad, row_dims, [&](auto type, const void* x, void* out, int64_t rows, int64_t length) {
        using T = typename decltype(type)::type;
        if (length < kLongRow || rows > kFewRows) {
          const int64_t vectors = blocks_for(length, Vector<T>::size);
          const int threads = int(std::min<int64_t>(kThreads, blocks_for(vectors, kWarpSize) * kWarpSize));
          visit_norm(norm_type, [&](auto terms) {
            launch(
                clip_rows_kernel<decltype(terms), T>, std::min<int64_t>(rows, INT32_MAX), threads, terms,
                static_cast<const T*>(x), static_cast<T*>(out), rows, length, max_norm);
          });
          return;
        }
        for (int64_t r = 0; r < rows; ++r) {
          const T* source = static_cast<const T*>(x) + r * length;
          Tensor row_norm = empty_strided({}, {}, ScalarType::Double, grad);
          Launches over(launch, {{const_cast<T*>(source), length, nullptr, storage_of_type<T>()}});
          enqueue_norm(over, norm_type, sizeof(T) == 8, row_norm);
          launch(
              rewrite_to_kernel<T, Scale>, rewrite_blocks<T>(length), kThreads, source,
              static_cast<T*>(out) + r * length, length, scale_by(row_norm, max_norm));
        }
      });
}

Tensor clip_gradient_value_backward_cuda(const Tensor& grad, double clip_value) {
  Launcher launch(grad);
  return clip_gradient_value_backward(grad, clip_value, [&](auto type, const void* x, void* out, int64_t numel) {
    using T = typename decltype(type)::type;
    launch(
        rewrite_to_kernel<T, Clamp>, rewrite_blocks<T>(numel), kThreads, static_cast<const T*>(x), static_cast<T*>(out),
        numel, Clamp{clip_value});
  });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("total_norm", &total_norm_cuda);
  m.impl("total_norms", &total_norms_cuda);
  m.impl("clip_grad_norm_", &clip_grad_norm_cuda);
  m.impl("clip_grad_norms_", &clip_grad_norms_cuda);
  m.impl("clip_grads_with_norm_", &clip_grads_with_norm_cuda);
  m.impl("clip_grad_value_", &clip_grad_value_cuda);
  m.impl("clip_gradient_value_backward", TORCH_BOX(&clip_gradient_value_backward_cuda));
  m.impl("clip_gradient_norm_backward", TORCH_BOX(&clip_gradient_norm_backward_cuda));
}

}  // namespace ste_ops
