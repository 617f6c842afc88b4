#include "cpu/quantize/steps.h"
#include "cpu/seeded.h"
#include "ops/library.h"
#include "ops/sampling/weights.h"

namespace ste_ops {
namespace {

// `make(A())` is the function for the arithmetic A.
template <class Make>
Tensor rounded(const char* op, const Tensor& x, Make make) {
  return map_elements(op, x, [&](const auto* x, auto* out, int64_t numel) {
    using A = decltype(load(*x));
    quantize_all(Plain<decltype(make(A())), A>{make(A())}, TensorStep<A>{}, x, out, numel);
  });
}

Tensor round_cpu(Tensor x) {
  return rounded("round", x, [](auto) { return Round(); });
}
Tensor floor_cpu(Tensor x) {
  return rounded("floor", x, [](auto) { return Floor(); });
}
Tensor ceil_cpu(Tensor x) {
  return rounded("ceil", x, [](auto) { return Ceil(); });
}
Tensor trunc_cpu(Tensor x) {
  return rounded("trunc", x, [](auto) { return Trunc(); });
}
Tensor clamp_cpu(Tensor x, double min, double max) {
  return rounded("clamp", x, [=](auto arithmetic) { return Clamp<decltype(arithmetic)>(min, max); });
}

template <class T>
struct StochasticRound {
  const T* x;
  T* out;
  STE_OPS_INLINE void operator()(int64_t i, uint64_t random) const {
    out[i] = store<T>(stochastic_round(load(x[i]), random));
  }
};

Tensor stochastic_round_cpu(Tensor x, Tensor seed) {
  const int64_t rows = seed_rows("stochastic_round", seed, x, "x");
  return map_elements("stochastic_round", x, [&](const auto* x, auto* out, int64_t numel) {
    using T = std::remove_pointer_t<decltype(out)>;
    for_each_stretch(unsigned_data(seed), rows, numel / rows, [&](const SeededStretch& stretch) {
      each_drawn(StochasticRound<T>{x, out}, stretch);
    });
  });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("round", TORCH_BOX(&round_cpu));
  m.impl("floor", TORCH_BOX(&floor_cpu));
  m.impl("ceil", TORCH_BOX(&ceil_cpu));
  m.impl("trunc", TORCH_BOX(&trunc_cpu));
  m.impl("clamp", TORCH_BOX(&clamp_cpu));
  m.impl("stochastic_round", TORCH_BOX(&stochastic_round_cpu));
}

}  // namespace ste_ops
