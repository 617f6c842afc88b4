#include "ops/clip/in_graph.h"

#include "cpu/clip/norm.h"
#include "cpu/clip/scale.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T>
struct ClampRange {
  const T* x;
  T* out;
  arithmetic_t<T> bound;

  void operator()(int64_t begin, int64_t end) const { clamp_loop(x + begin, out + begin, end - begin, bound); }
};

template <class T>
struct ScaleRange {
  const T* x;
  T* out;
  double coefficient;

  void operator()(int64_t begin, int64_t end) const {
    if (leaves_alone(coefficient)) {
      memcpy(out + begin, x + begin, (end - begin) * sizeof(T));
    } else {
      scale_loop(x + begin, out + begin, end - begin, arithmetic_t<T>(coefficient));
    }
  }
};

// A long row is divided among the threads itself, short ones are dealt out whole; nested loops stay serial.
template <class T>
struct ClipRows {
  const T* x;
  T* out;
  int64_t length;
  double max_norm, p;

  void operator()(int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r) {
      const T* row = x + r * length;
      const double coefficient = clip_coefficient(norm_of_row(row, length, storage_of_type<T>(), p), max_norm);
      torch::stable::parallel_for(0, length, kGrain, ScaleRange<T>{row, out + r * length, coefficient});
    }
  }
};

Tensor clip_gradient_value_backward_cpu(const Tensor& grad, double clip_value) {
  const ClipValueBackward call(grad, clip_value);
  if (call.numel == 0) return call.out;
  dispatch_floating(call.op, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const ClampRange<T> clamp{
        static_cast<const T*>(call.x.const_data_ptr()), static_cast<T*>(call.out.mutable_data_ptr()),
        clip_bound<T>(clip_value)};
    torch::stable::parallel_for(0, call.numel, kGrain, clamp);
  });
  return call.out;
}

Tensor clip_gradient_norm_backward_cpu(const Tensor& grad, int64_t row_dims, double max_norm, double norm_type) {
  const ClipRowsBackward call(grad, row_dims, max_norm, norm_type);
  if (call.rows == 0) return call.out;
  dispatch_floating(call.op, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const ClipRows<T> clip{
        static_cast<const T*>(call.x.const_data_ptr()), static_cast<T*>(call.out.mutable_data_ptr()), call.length,
        max_norm, norm_type};
    torch::stable::parallel_for(0, call.rows, std::max<int64_t>(1, kGrain / call.length), clip);
  });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("clip_gradient_value_backward", TORCH_BOX(&clip_gradient_value_backward_cpu));
  m.impl("clip_gradient_norm_backward", TORCH_BOX(&clip_gradient_norm_backward_cpu));
}

}  // namespace ste_ops
