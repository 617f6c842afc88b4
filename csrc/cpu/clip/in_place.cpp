#include "cpu/clip/blocks.h"

namespace ste_ops {

void rewrite(const Blocks& blocks, const Scaling& scaling) {
  if (scaling.action == Scaling::kLeave) return;
  for_each_block(blocks, [&](const TensorData& gradient, int64_t begin, int64_t end, int64_t) {
    if (scaling.action == Scaling::kMultiply) return scale_block(gradient, begin, end, scaling.coefficient);
    visit_storage(gradient.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      for_each_tile<T>(gradient, begin, end, [](T* x, int64_t count) {
        std::fill_n(x, count, T{});
        return true;
      });
    });
  });
}

namespace {

template <class T>
STE_OPS_CLONES bool exceeds_loop(const T* x, int64_t count, arithmetic_t<T> bound) {
  int exceeds = 0;
  for (int64_t i = 0; i < count; ++i) exceeds |= magnitude(load(x[i])) > bound;
  return exceeds != 0;
}

// Writes only the stretches that hold something to clamp.
void clamp(const Blocks& blocks, double clip_value) {
  constexpr int64_t kStretch = 512;
  for_each_block(blocks, [&](const TensorData& gradient, int64_t begin, int64_t end, int64_t) {
    visit_storage(gradient.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      const arithmetic_t<T> bound = clip_bound<T>(clip_value);
      for_each_tile<T>(gradient, begin, end, [&](T* x, int64_t count) {
        bool wrote = false;
        for (int64_t i = 0; i < count; i += kStretch) {
          int64_t length = std::min(kStretch, count - i);
          if (!exceeds_loop(x + i, length, bound)) continue;
          clamp_loop(x + i, x + i, length, bound);
          wrote = true;
        }
        return wrote;
      });
    });
  });
}

double value_of(const Tensor& norm) {
  if (norm.scalar_type() == ScalarType::Double) return *static_cast<const double*>(norm.const_data_ptr());
  return *static_cast<const float*>(norm.const_data_ptr());
}

Tensor norm_of(const TensorList& gradients, const Blocks& blocks, double p) {
  Tensor out = gradients.empty_norm();
  write_norm(out, 0, norm_of_blocks(blocks, p, gradients.has_float64));
  return out;
}

// The norm of all, and in `of_each` that of each tensor of the list.
Tensor norms_of(const TensorList& gradients, const Blocks& blocks, double p, Tensor& of_each) {
  Tensor out = gradients.empty_norm();
  std::vector<double> norms(blocks.count());
  write_norm(out, 0, norm_of_blocks(blocks, p, gradients.has_float64, norms.data()));
  of_each = gradients.empty_norms();
  for (size_t i = 0; i < gradients.places.size(); ++i) {
    const int32_t place = gradients.places[i];
    write_norm(of_each, int64_t(i), place < 0 ? 0 : norms[place]);
  }
  return out;
}

void total_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("total_norm", stack[0], Access::kRead, Placed::kOnCpu);
  const double p = checked_norm_type("total_norm", to<double>(stack[1]));
  stack[0] = from(norm_of(gradients, Blocks(gradients.items), p));
}

void total_norms_cpu(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("total_norms", stack[0], Access::kRead, Placed::kOnCpu);
  const double p = checked_norm_type("total_norms", to<double>(stack[1]));
  Tensor of_each;
  stack[0] = from(norms_of(gradients, Blocks(gradients.items), p, of_each));
  stack[1] = from(of_each);
}

void clip_grads_with_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Tensor norm = to<Tensor>(stack[1]);
  TensorList gradients("clip_grads_with_norm_", stack[0], Access::kWrite, Placed::kOnCpu);
  check_total_norm(gradients, norm);
  const double max_norm = to<double>(stack[2]);
  const NonFinite nonfinite = checked_nonfinite("clip_grads_with_norm_", to<int64_t>(stack[3]));
  rewrite(Blocks(gradients.items), scaling(value_of(norm), max_norm, nonfinite));
}

// From the rounded norm, so that clipping is total_norm followed by clip_grads_with_norm_ to the last bit.
void clip_grad_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("clip_grad_norm_", stack[0], Access::kWrite, Placed::kOnCpu);
  const double max_norm = to<double>(stack[1]);
  const double p = checked_norm_type("clip_grad_norm_", to<double>(stack[2]));
  const NonFinite nonfinite = checked_nonfinite("clip_grad_norm_", to<int64_t>(stack[3]));
  Blocks blocks(gradients.items);
  Tensor total = norm_of(gradients, blocks, p);
  rewrite(blocks, scaling(value_of(total), max_norm, nonfinite));
  stack[0] = from(total);
}

void clip_grad_norms_cpu(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("clip_grad_norms_", stack[0], Access::kWrite, Placed::kOnCpu);
  const double max_norm = to<double>(stack[1]);
  const double p = checked_norm_type("clip_grad_norms_", to<double>(stack[2]));
  const NonFinite nonfinite = checked_nonfinite("clip_grad_norms_", to<int64_t>(stack[3]));
  Blocks blocks(gradients.items);
  Tensor of_each;
  Tensor total = norms_of(gradients, blocks, p, of_each);
  rewrite(blocks, scaling(value_of(total), max_norm, nonfinite));
  stack[0] = from(total);
  stack[1] = from(of_each);
}

void clip_grad_value_cpu(StableIValue* stack, uint64_t, uint64_t) {
  TensorList gradients("clip_grad_value_", stack[0], Access::kWrite, Placed::kOnCpu);
  clamp(Blocks(gradients.items), to<double>(stack[1]));
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("total_norm", &total_norm_cpu);
  m.impl("total_norms", &total_norms_cpu);
  m.impl("clip_grad_norm_", &clip_grad_norm_cpu);
  m.impl("clip_grad_norms_", &clip_grad_norms_cpu);
  m.impl("clip_grads_with_norm_", &clip_grads_with_norm_cpu);
  m.impl("clip_grad_value_", &clip_grad_value_cpu);
}

}  // namespace ste_ops
