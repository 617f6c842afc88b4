#include "ops/clip/in_place.h"

#include "cuda/clip/change.cuh"
#include "cuda/clip/norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Moves: reads n * T + Change, writes changed * T; changed are the elements of vectors that change.
// Moves (all left alone): reads Change, writes 0.
template <class Change, int N>
__global__ void __launch_bounds__(kThreads)
    rewrite_kernel(const __grid_constant__ TensorTable<N> table, Change change) {
  if (change.leaves()) return;
  const int t = find_item(table);
  const int64_t begin = int64_t(blockIdx.x - table.first_block[t]) * kBlock;
  with_storage(table.storage[t], [&](auto type) {
    using T = typename decltype(type)::type;
    const auto rule = change.template rule<T>();
    rewrite_dense(static_cast<T*>(table.data[t]) + begin, at_most(table.numel[t] - begin, kBlock), rule);
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
struct LaunchRewrite {
  const Launcher& launch;
  Change change;

  template <int N>
  void operator()(const TensorTable<N>& table, TablePlace at) const {
    launch(rewrite_kernel<Change, N>, at.blocks, kThreads, table, change);
  }
  void operator()(const TensorData& t, TablePlace at) const {
    launch(strided_rewrite_kernel<Change>, at.blocks, kThreads, t.data, t.numel, t.storage, *t.layout, change);
  }
};

template <class Change>
void enqueue_rewrite(const Launches& over, Change change) {
  over.run(LaunchRewrite<Change>{over.launch(), change});
}

void clip_grads_with_norm_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradsWithNorm call(stack, Placed::kAnywhere);
  const Launcher launch(call.norm);
  enqueue_rewrite(Launches(launch, call.grads.items), scale_by(call.norm, call.max_norm, call.nonfinite));
}

void clip_grad_norm_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradNorm call(stack, Placed::kAnywhere);
  const Norms norms(call.grads, call.each);
  const Launcher launch(norms.total);
  const Launches over(launch, call.grads.items);
  enqueue_norms(over, call.grads, call.p, norms);
  enqueue_rewrite(over, scale_by(norms.total, call.max_norm, call.nonfinite));
  norms.give(stack);
}

void clip_grad_value_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradValue call(stack, Placed::kAnywhere);
  const Launcher launch(call.grads.any());
  enqueue_rewrite(Launches(launch, call.grads.items), ClampGradient{call.clip_value});
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("clip_grad_norm_", &clip_grad_norm_cuda);
  m.impl("clip_grads_with_norm_", &clip_grads_with_norm_cuda);
  m.impl("clip_grad_value_", &clip_grad_value_cuda);
}

}  // namespace ste_ops
