#include "ops/clip/in_place.h"

#include "cpu/clip/norm.h"
#include "cpu/clip/scale.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

struct Zero {
  template <class T>
  bool operator()(T* x, int64_t count) const {
    std::fill_n(x, count, T{});
    return true;
  }
};

template <class T>
STE_OPS_CLONES bool exceeds_loop(const T* x, int64_t count, arithmetic_t<T> bound) {
  int exceeds = 0;
  for (int64_t i = 0; i < count; ++i) exceeds |= magnitude(load(x[i])) > bound;
  return exceeds != 0;
}

// Writes only the stretches that hold something to clamp.
struct ClampGradient {
  static constexpr int64_t kStretch = 512;
  double clip_value;

  template <class T>
  bool operator()(T* x, int64_t count) const {
    const arithmetic_t<T> bound = clip_bound<T>(clip_value);
    bool wrote = false;
    for (int64_t i = 0; i < count; i += kStretch) {
      const int64_t length = std::min(kStretch, count - i);
      if (!exceeds_loop(x + i, length, bound)) continue;
      clamp_loop(x + i, x + i, length, bound);
      wrote = true;
    }
    return wrote;
  }
};

double value_of(const Tensor& norm) {
  if (norm.scalar_type() == ScalarType::Double) return *static_cast<const double*>(norm.const_data_ptr());
  return *static_cast<const float*>(norm.const_data_ptr());
}

}  // namespace

void rewrite(const Blocks& blocks, const Scaling& scaling) {
  switch (scaling.action) {
    case Scaling::kLeave: return;
    case Scaling::kMultiply: return for_each_block(blocks, ChangeBlock<Scale>{{scaling.coefficient}});
    case Scaling::kZero: return for_each_block(blocks, ChangeBlock<Zero>{});
  }
}

namespace {

void clip_grads_with_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradsWithNorm call(stack, Placed::kOnCpu);
  rewrite(Blocks(call.grads.items), scaling(value_of(call.norm), call.max_norm, call.nonfinite));
}

// From the rounded norm, so that clipping is total_norm followed by clip_grads_with_norm_ to the last bit.
void clip_grad_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradNorm call(stack, Placed::kOnCpu);
  const Blocks blocks(call.grads.items);
  const Norms norms = norms_of(call.grads, blocks, call.p, call.each);
  rewrite(blocks, scaling(value_of(norms.total), call.max_norm, call.nonfinite));
  norms.give(stack);
}

void clip_grad_value_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradValue call(stack, Placed::kOnCpu);
  for_each_block(Blocks(call.grads.items), ChangeBlock<ClampGradient>{{call.clip_value}});
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("clip_grad_norm_", &clip_grad_norm_cpu);
  m.impl("clip_grads_with_norm_", &clip_grads_with_norm_cpu);
  m.impl("clip_grad_value_", &clip_grad_value_cpu);
}

}  // namespace ste_ops
