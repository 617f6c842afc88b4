// The Bernoulli draw.
#include "core/sampling/bernoulli.h"
#include "cuda/sampling/fault.cuh"
#include "cuda/seeded.cuh"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// NaN where p is no probability, and a report: nothing asserts on the device. Left to choose, the compiler takes so few
// registers on 10.0 and 12.0 that it spills.
// Moves: reads n * T + 8 * seeds, writes n * T.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads, 2) bernoulli_kernel(
    const bits_t<T>* p, const uint64_t* seed, int64_t rows, int64_t numel, bits_t<T>* out, bool aligned,
    DeferredErrors deferred) {
  const BlockErrors errors(deferred);
  map_drawn(p, seed, rows, numel, out, aligned, [&](bits_t<T> probability, int64_t place, uint64_t random) {
    if (is_probability<T>(probability)) return bernoulli<T>(probability, random) ? kOne<T> : bits_t<T>(0);
    errors.report(Fault::probability(place, double(load(bit_cast<T>(probability)))));
    return kNaN<T>;
  });
}

template <class T>
void launch_bernoulli(
    Type<T>, const Launcher& launch, const Elementwise& call, const Tensor& seed, int64_t rows,
    const DeferredErrors& errors) {
  const bits_t<T>* p = const_data<bits_t<T>>(call.x);
  bits_t<T>* out = mutable_data<bits_t<T>>(call.out);
  launch(
      bernoulli_kernel<T>, elementwise_blocks<bits_t<T>>(call.x.numel()), kElementwiseThreads, p,
      const_data<uint64_t>(seed), rows, call.x.numel() / rows, out, aligned16(p) && aligned16(out), errors);
}

Tensor bernoulli_cuda(Tensor p, Tensor seed) {
  constexpr const char* op = "bernoulli_ste";
  const Launcher launch(p);
  const DeferredErrors errors(p, op);
  const int64_t rows = seed_rows(op, seed, p, "p");
  const Elementwise call(p);
  dispatch_elements(op, "p", p, [&](auto type) { launch_bernoulli(type, launch, call, seed, rows, errors); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("bernoulli", TORCH_BOX(&bernoulli_cuda)); }

}  // namespace ste_ops
