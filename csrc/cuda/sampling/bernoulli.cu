#include "ops/sampling/bernoulli.h"

#include "cuda/sampling/fault.cuh"
#include "cuda/seeded.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// NaN where p is no probability, and a report: nothing asserts on the device. Left to choose, the compiler takes so few
// registers on 10.0 and 12.0 that it spills.
// Moves: reads n * T + 8 * seeds, writes n * T.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads, 2) bernoulli_kernel(
    const bits_t<T>* p, const uint64_t* seed, int64_t rows, int64_t numel, bits_t<T>* out, bool aligned,
    DeferredErrors errors) {
  map_drawn(p, seed, rows, numel, out, aligned, [&](bits_t<T> probability, int64_t place, uint64_t random) {
    if (is_probability<T>(probability)) return bernoulli<T>(probability, random) ? kOne<T> : bits_t<T>(0);
    errors.report(Fault::probability(place, double(load(bit_cast<T>(probability)))));
    return kNaN<T>;
  });
}

Tensor bernoulli_cuda(Tensor p, Tensor seed) {
  Launcher launch(p);
  DeferredErrors errors(p, "bernoulli_ste");
  return bernoulli(
      p, seed,
      [&](auto type, const Tensor&, const auto* p, const uint64_t* seed, int64_t rows, int64_t numel, auto* out) {
        using T = typename decltype(type)::type;
        launch(
            bernoulli_kernel<T>, elementwise_blocks<bits_t<T>>(rows * numel), kElementwiseThreads, p, seed, rows, numel,
            out, aligned16(p) && aligned16(out), errors);
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("bernoulli", TORCH_BOX(&bernoulli_cuda)); }

}  // namespace ste_ops
