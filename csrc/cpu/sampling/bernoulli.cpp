// The Bernoulli draw.
#include <algorithm>
#include <atomic>

#include "core/sampling/bernoulli.h"
#include "cpu/sampling/draws.h"
#include "cpu/seeded.h"
#include "ops/checks.h"
#include "ops/layout.h"
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

template <class T>
void bernoulli_loop(Type<T>, const Elementwise& call, const uint64_t* seeds, int64_t rows) {
  const bits_t<T>* p = const_data<bits_t<T>>(call.x);
  const Bernoulli<T> f{p, mutable_data<bits_t<T>>(call.out)};
  const int64_t numel = call.x.numel();
  std::atomic<int64_t> invalid(numel);  // the place of the first p that is no probability
  for_each_stretch(seeds, rows, numel / rows, [&](const SeededStretch& stretch) {
    if (each_drawn(f, stretch).invalid == 0) return;
    const bits_t<T>* begin = p + stretch.begin;
    lower(invalid, std::find_if_not(begin, begin + stretch.count, is_probability<T>) - p);
  });
  if (invalid == numel) return;
  refuse("bernoulli_ste", Fault::probability(invalid, double(load(bit_cast<T>(p[invalid])))));
}

Tensor bernoulli_cpu(Tensor p, Tensor seed) {
  constexpr const char* op = "bernoulli_ste";
  const int64_t rows = seed_rows(op, seed, p, "p");
  const Elementwise call(p);
  dispatch_elements(op, "p", p, [&](auto type) { bernoulli_loop(type, call, const_data<uint64_t>(seed), rows); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("bernoulli", TORCH_BOX(&bernoulli_cpu)); }

}  // namespace ste_ops
