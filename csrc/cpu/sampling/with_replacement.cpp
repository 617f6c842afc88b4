// Draws with replacement in one call: each row by its sums or from a table, which is in memory for the draws alone.
#include "ops/sampling/with_replacement.h"

#include <memory>
#include <vector>

#include "cpu/sampling/alias.h"
#include "cpu/sampling/alias_draws.h"
#include "cpu/sampling/inverse_cdf.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T>
struct RepeatRows {
  const bits_t<T>* weights;
  uint64_t seed;
  int64_t n, num_samples;
  int64_t *out, *states;

  // Draws from rows first .. last - 1; a state says what is wrong with one.
  void operator()(int64_t first, int64_t last) const {
    if (few_draws(n, num_samples)) {
      RowDrawer<T> drawer(n);
      for (int64_t row = first; row < last; ++row) {
        states[row] = drawer.draw(weights + row * n, seed, uint64_t(row), num_samples, out + row * num_samples);
      }
      return;
    }
    RowBuilder<T> builder(n);
    const std::unique_ptr<uint64_t[]> table(new uint64_t[size_t(n)]);
    for (int64_t row = first; row < last; ++row) {
      states[row] = builder.build(weights + row * n, table.get());
      const DrawFromTable draw{table.get(), states[row], seed, uint64_t(row), n, 0, 1, out + row * num_samples};
      share_draws(num_samples, draw);
    }
  }

  double nanoseconds() const {
    return few_draws(n, num_samples) ? kWeightNanoseconds * double(n) + kSearchNanoseconds * double(num_samples)
                                     : kBuildNanoseconds * double(n) + kDrawNanoseconds * double(num_samples);
  }
};

template <class T>
void repeat_rows(const RepeatedDraws& call) {
  const Weights& weights = call.weights;
  std::vector<int64_t> states(size_t(weights.rows));
  const RepeatRows<T> draw{
      weights.bits<T>(), *unsigned_data(call.seed), weights.n, call.num_samples, mutable_typed_data<int64_t>(call.out),
      states.data()};
  share_rows(weights.rows, draw.nanoseconds(), draw);
  for (int64_t row = 0; row < weights.rows; ++row) {
    if (states[size_t(row)] > 0) continue;
    refuse(kMultinomial, fault_of_state<T>(states[size_t(row)], draw.weights, weights.n, row, weights.one_row));
  }
}

Tensor multinomial_with_replacement_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  const RepeatedDraws call = prepare_repeated_draws(weights, seed, num_samples);
  dispatch_weights(call.op, call.weights, [&](auto type) { repeat_rows<typename decltype(type)::type>(call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("multinomial_with_replacement", TORCH_BOX(&multinomial_with_replacement_cpu)); }

}  // namespace ste_ops
