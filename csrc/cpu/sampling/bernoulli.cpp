#include "ops/sampling/bernoulli.h"

#include <algorithm>
#include <atomic>

#include "cpu/sampling/draws.h"
#include "cpu/seeded.h"
#include "ops/library.h"
#include "ops/sampling/fault.h"

namespace ste_ops {
namespace {

template <class T>
struct Bernoulli {
  const bits_t<T>* p;
  bits_t<T>* out;
  bits_t<T> invalid = 0;  // not 0 where some p was no probability

  STE_OPS_INLINE void operator()(int64_t i, uint64_t random) {
    out[i] = kOne<T> & bits_t<T>(-bits_t<T>(bernoulli<T>(p[i], random)));
    invalid |= bits_t<T>(!is_probability<T>(p[i]));
  }
};

// The place of the first p that is no probability, `numel` where there is none.
template <class T>
int64_t draw_all(const bits_t<T>* p, const uint64_t* seeds, int64_t rows, int64_t in_row, bits_t<T>* out) {
  std::atomic<int64_t> invalid(rows * in_row);
  for_each_stretch(seeds, rows, in_row, [&](const SeededStretch& stretch) {
    if (each_drawn(Bernoulli<T>{p, out}, stretch).invalid == 0) return;
    const bits_t<T>* begin = p + stretch.begin;
    lower(invalid, std::find_if_not(begin, begin + stretch.count, is_probability<T>) - p);
  });
  return invalid;
}

Tensor bernoulli_cpu(Tensor p, Tensor seed) {
  return bernoulli(
      p, seed,
      [](auto type, const Tensor&, const auto* p, const uint64_t* seed, int64_t rows, int64_t in_row, auto* out) {
        using T = typename decltype(type)::type;
        const int64_t invalid = draw_all<T>(p, seed, rows, in_row, out);
        if (invalid == rows * in_row) return;
        refuse("bernoulli_ste", Fault::probability(invalid, double(load(bit_cast<T>(p[invalid])))));
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("bernoulli", TORCH_BOX(&bernoulli_cpu)); }

}  // namespace ste_ops
