// Rounding, clamping and stochastic rounding.
#include <cmath>

#include "cuda/quantize/steps.cuh"
#include "cuda/seeded.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class F, class T>
void launch_rounding(const Launcher& launch, Type<T> type, const F& f, const Elementwise& call) {
  launch_without_steps<0>(launch, type, Plain<F, arithmetic_t<T>>{f}, call, {});
}

template <class F>
Tensor rounded(const char* op, const Tensor& x) {
  const Launcher launch(x, op);
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) { launch_rounding(launch, type, F(), call); });
  return call.out;
}

Tensor round_cuda(Tensor x) { return rounded<Round>("round", x); }
Tensor floor_cuda(Tensor x) { return rounded<Floor>("floor", x); }
Tensor ceil_cuda(Tensor x) { return rounded<Ceil>("ceil", x); }
Tensor trunc_cuda(Tensor x) { return rounded<Trunc>("trunc", x); }

Tensor clamp_cuda(Tensor x, std::optional<double> min, std::optional<double> max) {
  const Launcher launch(x, "clamp");
  const Elementwise call(x);
  dispatch_elements("clamp", "x", x, [&](auto type) {
    using A = arithmetic_t<typename decltype(type)::type>;
    launch_rounding(launch, type, Clamp<A>(min.value_or(-HUGE_VAL), max.value_or(HUGE_VAL)), call);
  });
  return call.out;
}

// One seed, or one for each of `rows` rows of numel / rows elements.
// Moves: reads n * T + 8 * seeds, writes n * T.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    stochastic_round_kernel(const T* x, const uint64_t* seed, int64_t rows, int64_t in_row, T* out, bool aligned) {
  map_drawn(x, seed, rows, in_row, out, aligned, [](T value, int64_t, uint64_t random) {
    return store<T>(stochastic_round(load(value), random));
  });
}

template <class T>
void launch_stochastic_round(
    const Launcher& launch, Type<T>, const Elementwise& call, const uint64_t* seeds, int64_t rows) {
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  launch(
      stochastic_round_kernel<T>, elementwise_blocks<T>(numel), kElementwiseThreads, x, seeds, rows, numel / rows, out,
      aligned16(x) && aligned16(out));
}

Tensor stochastic_round_cuda(Tensor x, Tensor seed) {
  constexpr const char* op = "stochastic_round";
  const Launcher launch(x);
  const int64_t rows = seed_rows(op, seed, x, "x");
  const Elementwise call(x);
  dispatch_elements(
      op, "x", x, [&](auto type) { launch_stochastic_round(launch, type, call, const_data<uint64_t>(seed), rows); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("round", TORCH_BOX(&round_cuda));
  m.impl("floor", TORCH_BOX(&floor_cuda));
  m.impl("ceil", TORCH_BOX(&ceil_cuda));
  m.impl("trunc", TORCH_BOX(&trunc_cuda));
  m.impl("clamp", TORCH_BOX(&clamp_cuda));
  m.impl("stochastic_round", TORCH_BOX(&stochastic_round_cuda));
}

}  // namespace ste_ops
