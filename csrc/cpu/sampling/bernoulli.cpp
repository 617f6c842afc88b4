#include "ops/sampling/bernoulli.h"

#include <algorithm>
#include <atomic>

#include "cpu/sampling/draws.h"
#include "ops/library.h"
#include "ops/sampling/fault.h"

namespace ste_ops {
namespace {

template <class T>
STE_OPS_INLINE bool bernoulli_batch(const bits_t<T>* p, uint64_t seed, uint64_t start, bits_t<T>* out, int64_t count) {
  RandomBlock<kDraws> random;
  philox_block(seed, 0, start, random);
  bits_t<T> invalid = 0;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = kOne<T> & bits_t<T>(-bits_t<T>(bernoulli<T>(p[i], random.low[i])));
    invalid |= bits_t<T>(!is_probability<T>(p[i]));
  }
  return invalid == 0;
}

// Whether every p is a probability.
template <class T>
STE_OPS_CLONES bool bernoulli_stretch(
    const bits_t<T>* p, uint64_t seed, uint64_t start, bits_t<T>* out, int64_t count) {
  bool valid = true;
  int64_t i = 0;
  for (; i + kDraws <= count; i += kDraws)
    valid &= bernoulli_batch<T>(p + i, seed, start + uint64_t(i), out + i, kDraws);
  if (i < count) valid &= bernoulli_batch<T>(p + i, seed, start + uint64_t(i), out + i, count - i);
  return valid;
}

Tensor bernoulli_cpu(Tensor p, Tensor seed) {
  return bernoulli(
      p, seed,
      [](auto type, const Tensor&, const auto* p, const uint64_t* seed, int64_t rows, int64_t numel, auto* out) {
        using T = typename decltype(type)::type;
        std::atomic<int64_t> invalid(rows * numel);
        parallel_aligned(rows * numel, kDraws, [&](int64_t begin, int64_t end) {
          while (begin < end) {
            int64_t row = begin / numel, first = begin % numel, count = std::min(numel - first, end - begin);
            if (!bernoulli_stretch<T>(p + begin, seed[row], uint64_t(first), out + begin, count)) {
              lower(invalid, std::find_if_not(p + begin, p + begin + count, is_probability<T>) - p);
            }
            begin += count;
          }
        });
        if (invalid < rows * numel)
          refuse("bernoulli_ste", Fault::probability(invalid, double(load(bit_cast<T>(p[invalid])))));
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("bernoulli", TORCH_BOX(&bernoulli_cpu)); }

}  // namespace ste_ops
