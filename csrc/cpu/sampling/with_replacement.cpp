// Draws with replacement in one call: each row by its sums or from a table, which is in memory for the draws alone.
#include "ops/sampling/with_replacement.h"

#include <vector>

#include "cpu/sampling/repeat_rows.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

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
