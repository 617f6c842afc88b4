#include "ops/sampling/alias.h"

#include <algorithm>

#include "cpu/sampling/alias.h"
#include "cpu/sampling/draws.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

std::tuple<Tensor, Tensor> alias_table_cpu(Tensor weights) {
  return alias_table(weights, [](auto type, const Tensor&, auto... arguments) {
    build_tables<typename decltype(type)::type>(arguments...);
  });
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
  for (; i + kDraws <= count; i += kDraws)
    draw_batch(draw, table, seed, row, start + stride * uint64_t(i), stride, out + i, kDraws);
  // A batch of random numbers costs as much as a fifth of it one by one.
  if (count - i >= kDraws / 5)
    return draw_batch(draw, table, seed, row, start + stride * uint64_t(i), stride, out + i, count - i);
  for (; i < count; ++i) {
    Random128 random = philox_draw(seed, row, start + stride * uint64_t(i));
    uint64_t column = draw.column(low_bits(random));
    out[i] = draw.item(column, table[column], high_bits(random));
  }
}

Tensor alias_sample_cpu(
    Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples, int64_t stride) {
  return alias_sample(
      table, capacity, seed, start, num_samples, stride,
      [](const Tensor&, const uint64_t* table, const int64_t* capacity, const uint64_t* seed, int64_t rows, int64_t n,
         uint64_t start, uint64_t stride, int64_t num_samples, int64_t* out) {
        parallel_aligned(rows * num_samples, kDraws, [&](int64_t begin, int64_t end) {
          while (begin < end) {
            int64_t row = begin / num_samples, first = begin % num_samples;
            int64_t count = std::min(num_samples - first, end - begin);
            if (capacity[row] > 0) {
              draw_stretch(
                  AliasDraw(n, capacity[row]), table + row * n, *seed, uint64_t(row), start + stride * uint64_t(first),
                  stride, count, out + begin);
            } else {
              std::fill(out + begin, out + begin + count, -1);
            }
            begin += count;
          }
        });
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cpu));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cpu));
}

}  // namespace ste_ops
