#include "cuda/quantize/steps.cuh"
#include "cuda/seeded.cuh"
#include "ops/library.h"
#include "ops/sampling/weights.h"

namespace ste_ops {
namespace {

// `make(A())` is the function for the arithmetic A.
template <class Make>
Tensor rounded(const char* op, const Tensor& x, Make make) {
  Launcher launch(x, op);
  return map_elements(op, x, [&](const auto* x, auto* out, int64_t numel) {
    using A = decltype(load(*x));
    launch_quantize<0>(
        launch, Plain<decltype(make(A())), A>{make(A())}, NoSteps<A>(), whole_tensor(numel), x, out, MaskPointers{});
  });
}

Tensor round_cuda(Tensor x) {
  return rounded("round", x, [](auto) { return Round(); });
}
Tensor floor_cuda(Tensor x) {
  return rounded("floor", x, [](auto) { return Floor(); });
}
Tensor ceil_cuda(Tensor x) {
  return rounded("ceil", x, [](auto) { return Ceil(); });
}
Tensor trunc_cuda(Tensor x) {
  return rounded("trunc", x, [](auto) { return Trunc(); });
}
Tensor clamp_cuda(Tensor x, double min, double max) {
  return rounded("clamp", x, [=](auto arithmetic) { return Clamp<decltype(arithmetic)>(min, max); });
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

Tensor stochastic_round_cuda(Tensor x, Tensor seed) {
  constexpr const char* op = "stochastic_round";
  Launcher launch(x);
  const int64_t rows = seed_rows(op, seed, x, "x");
  return map_elements(op, x, [&](const auto* x, auto* out, int64_t numel) {
    using T = std::remove_pointer_t<decltype(out)>;
    launch(
        stochastic_round_kernel<T>, elementwise_blocks<T>(numel), kElementwiseThreads, x, unsigned_data(seed), rows,
        numel / rows, out, aligned16(x) && aligned16(out));
  });
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
