#include "core/sampling/philox.h"
#include "cpu/quantize/steps.h"
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

constexpr int64_t kDraws = 128;

template <class T>
STE_OPS_INLINE void stochastic_batch(const T* x, uint64_t seed, uint64_t start, T* out, int64_t count) {
  RandomBlock<kDraws> random;
  philox_block(seed, 0, start, random);
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(stochastic_round(load(x[i]), random.low[i]));
}

template <class T>
STE_OPS_CLONES void stochastic_stretch(const T* x, uint64_t seed, uint64_t start, T* out, int64_t count) {
  int64_t i = 0;
  for (; i + kDraws <= count; i += kDraws) stochastic_batch(x + i, seed, start + uint64_t(i), out + i, kDraws);
  if (i < count) stochastic_batch(x + i, seed, start + uint64_t(i), out + i, count - i);
}

Tensor stochastic_round_cpu(Tensor x, Tensor seed) {
  const int64_t rows = seed_rows("stochastic_round", seed, x, "x");
  return map_elements("stochastic_round", x, [&](const auto* x, auto* out, int64_t numel) {
    const uint64_t* seeds = unsigned_data(seed);
    const int64_t in_row = numel / rows;
    parallel_aligned(numel, kDraws, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        int64_t row = begin / in_row, first = begin % in_row;
        int64_t count = in_row - first < end - begin ? in_row - first : end - begin;
        stochastic_stretch(x + begin, seeds[row], uint64_t(first), out + begin, count);
        begin += count;
      }
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
