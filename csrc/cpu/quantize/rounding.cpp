// Rounding, clamping and stochastic rounding.
#include <cmath>

#include "cpu/quantize/steps.h"
#include "cpu/seeded.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class F, class T>
void rounding_loop(Type<T> type, const F& f, const Elementwise& call) {
  using A = arithmetic_t<T>;
  quantize_all(type, Plain<F, A>{f}, TensorStep<A>{}, call);
}

template <class F>
Tensor rounded(const char* op, const Tensor& x) {
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) { rounding_loop(type, F(), call); });
  return call.out;
}

Tensor round_cpu(Tensor x) { return rounded<Round>("round", x); }
Tensor floor_cpu(Tensor x) { return rounded<Floor>("floor", x); }
Tensor ceil_cpu(Tensor x) { return rounded<Ceil>("ceil", x); }
Tensor trunc_cpu(Tensor x) { return rounded<Trunc>("trunc", x); }

Tensor clamp_cpu(Tensor x, std::optional<double> min, std::optional<double> max) {
  const Elementwise call(x);
  dispatch_elements("clamp", "x", x, [&](auto type) {
    using A = arithmetic_t<typename decltype(type)::type>;
    rounding_loop(type, Clamp<A>(min.value_or(-HUGE_VAL), max.value_or(HUGE_VAL)), call);
  });
  return call.out;
}

template <class T>
struct StochasticRound {
  const T* x;
  T* out;
  STE_OPS_INLINE void operator()(int64_t i, uint64_t random) const {
    out[i] = store<T>(stochastic_round(load(x[i]), random));
  }
};

template <class T>
void stochastic_round_loop(Type<T>, const Elementwise& call, const uint64_t* seeds, int64_t rows) {
  const StochasticRound<T> f{const_data<T>(call.x), mutable_data<T>(call.out)};
  for_each_stretch(seeds, rows, call.x.numel() / rows, [&](const SeededStretch& stretch) { each_drawn(f, stretch); });
}

Tensor stochastic_round_cpu(Tensor x, Tensor seed) {
  constexpr const char* op = "stochastic_round";
  const int64_t rows = seed_rows(op, seed, x, "x");
  const Elementwise call(x);
  dispatch_elements(
      op, "x", x, [&](auto type) { stochastic_round_loop(type, call, const_data<uint64_t>(seed), rows); });
  return call.out;
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
