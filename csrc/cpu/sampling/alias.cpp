// Builds alias tables and draws from them.
#include "ops/sampling/alias.h"

#include <algorithm>
#include <tuple>

#include "cpu/sampling/alias.h"
#include "cpu/sampling/draws.h"
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

// The columns of a batch are known before the first entry is read, so that the reads overlap.
STE_OPS_INLINE void draw_batch(
    AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start, uint64_t stride, int64_t* out,
    int64_t count) {
  RandomBlock<kDraws> random;
  uint64_t column[kDraws];
  philox_block(seed, row, start, random, stride);
  for (int64_t i = 0; i < count; ++i) {
    column[i] = draw.column(random.low[i]);
    __builtin_prefetch(table + column[i]);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = draw.item(column[i], table[column[i]], random.high[i]);
}

STE_OPS_CLONES void draw_stretch(
    AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start, uint64_t stride, int64_t count,
    int64_t* out) {
  int64_t i = 0;
  for (; i + kDraws <= count; i += kDraws) {
    draw_batch(draw, table, seed, row, start + stride * uint64_t(i), stride, out + i, kDraws);
  }
  // A whole batch of random numbers costs as much as a fifth of a batch one by one.
  if (count - i >= kDraws / 5) {
    return draw_batch(draw, table, seed, row, start + stride * uint64_t(i), stride, out + i, count - i);
  }
  for (; i < count; ++i) {
    Random128 random = philox_draw(seed, row, start + stride * uint64_t(i));
    uint64_t column = draw.column(low_bits(random));
    out[i] = draw.item(column, table[column], high_bits(random));
  }
}

constexpr double kDrawNanoseconds = 3;

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
      draw(row, start + stride * uint64_t(first), count, out + begin);
      begin += count;
    }
  }

 private:
  void draw(int64_t row, uint64_t from, int64_t count, int64_t* drawn) const {
    if (capacity[row] <= 0) {
      std::fill(drawn, drawn + count, -1);
      return;
    }
    draw_stretch(AliasDraw(n, capacity[row]), table + row * n, seed, uint64_t(row), from, stride, count, drawn);
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
  const int64_t draws = call.rows * num_samples;
  share_out((draws + kDraws - 1) / kDraws, kDrawNanoseconds * kDraws, [&](int64_t first, int64_t last) {
    draw(first * kDraws, std::min(last * kDraws, draws));
  });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cpu));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cpu));
}

}  // namespace ste_ops
