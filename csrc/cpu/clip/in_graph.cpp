#include "cpu/clip/blocks.h"

namespace ste_ops {
namespace {

Tensor clip_gradient_value_backward_cpu(const Tensor& grad, double clip_value) {
  return clip_gradient_value_backward(grad, clip_value, [&](auto type, const void* x, void* out, int64_t numel) {
    using T = typename decltype(type)::type;
    torch::stable::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
      clamp_loop(
          static_cast<const T*>(x) + begin, static_cast<T*>(out) + begin, end - begin, clip_bound<T>(clip_value));
    });
  });
}

template <class T>
void clip_row(const T* x, T* out, int64_t length, double max_norm, double p) {
  const double coefficient = clip_coefficient(norm_of_row(x, length, storage_of_type<T>(), p), max_norm);
  const bool keep = leaves_alone(coefficient);
  torch::stable::parallel_for(0, length, kGrain, [&](int64_t begin, int64_t end) {
    if (keep) {
      memcpy(out + begin, x + begin, (end - begin) * sizeof(T));
    } else {
      scale_loop(x + begin, out + begin, end - begin, arithmetic_t<T>(coefficient));
    }
  });
}

Tensor clip_gradient_norm_backward_cpu(const Tensor& grad, int64_t row_dims, double max_norm, double norm_type) {
  checked_norm_type("clip_gradient_norm_backward", norm_type);
  return clip_gradient_norm_backward(
      grad, row_dims, [&](auto type, const void* x, void* out, int64_t rows, int64_t length) {
        using T = typename decltype(type)::type;
        // A long row is divided among the threads itself, short ones are dealt out whole; nested loops stay serial.
        torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / length), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            clip_row(
                static_cast<const T*>(x) + r * length, static_cast<T*>(out) + r * length, length, max_norm, norm_type);
          }
        });
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("clip_gradient_value_backward", TORCH_BOX(&clip_gradient_value_backward_cpu));
  m.impl("clip_gradient_norm_backward", TORCH_BOX(&clip_gradient_norm_backward_cpu));
}

}  // namespace ste_ops
