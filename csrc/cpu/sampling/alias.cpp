// Builds alias tables and draws from them.
#include "ops/sampling/alias.h"

#include <algorithm>
#include <tuple>

#include "cpu/sampling/alias.h"
#include "cpu/sampling/alias_draws.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T>
void build_tables(const AliasTables& call) {
  const int64_t rows = call.weights.rows, n = call.weights.n;
  const BuildRows<T> build{
      call.weights.bits<T>(), n, mutable_unsigned_data(call.table), mutable_typed_data<int64_t>(call.capacity)};
  share_rows(rows, kBuildNanoseconds * double(n), build);
}

std::tuple<Tensor, Tensor> alias_table_cpu(Tensor weights) {
  const AliasTables call(weights);
  dispatch_weights(call.op, call.weights, [&](auto type) { build_tables<typename decltype(type)::type>(call); });
  return {call.table, call.capacity};
}

// Draws begin .. end - 1 of all rows, laid end to end.
struct DrawFromTables {
  const uint64_t* table;
  const int64_t* capacity;
  uint64_t seed;
  int64_t n;
  uint64_t start, stride;
  int64_t num_samples;
  int64_t* out;

  void operator()(int64_t begin, int64_t end) const {
    while (begin < end) {
      const int64_t row = begin / num_samples, first = begin % num_samples;
      const int64_t count = std::min(num_samples - first, end - begin);
      const DrawFromTable of_row{table + row * n, capacity[row],          seed, uint64_t(row), n, start,
                                 stride,          out + row * num_samples};
      of_row(first, first + count);
      begin += count;
    }
  }
};

Tensor alias_sample_cpu(
    Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples, int64_t stride) {
  const AliasDraws call = prepare_alias_draws(table, capacity, seed, start, num_samples, stride);
  if (call.out.numel() == 0) return call.out;
  const DrawFromTables draw{
      unsigned_data(call.table),
      typed_data<int64_t>(call.capacity),
      *unsigned_data(call.seed),
      call.n,
      call.start,
      call.stride,
      num_samples,
      mutable_typed_data<int64_t>(call.out)};
  share_draws(call.rows * num_samples, draw);
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cpu));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cpu));
}

}  // namespace ste_ops
