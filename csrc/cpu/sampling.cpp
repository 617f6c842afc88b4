#include "../sampling.h"

#include <algorithm>
#include <atomic>

#include "../library.h"
#include "alias.h"
#include "loop.h"

namespace ste_ops {
namespace {

// Draws of one pass over the registers.
constexpr int64_t kDraws = 128;

std::tuple<Tensor, Tensor> alias_table_cpu(Tensor weights) {
  return alias_table(weights, [](auto type, const Tensor&, auto... arguments) {
    build_tables<typename decltype(type)::type>(arguments...);
  });
}

// The columns of a batch are known before the first entry is read, so that the reads overlap.
STE_OPS_INLINE void draw_batch(AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start,
                               int64_t* out, int64_t count) {
  RandomBlock<kDraws> random;
  uint64_t column[kDraws];
  philox_block(seed, row, start, random);
  for (int64_t i = 0; i < count; ++i) {
    column[i] = draw.column(random.low[i]);
    __builtin_prefetch(table + column[i]);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = draw.item(column[i], table[column[i]], random.high[i]);
}

STE_OPS_CLONES void draw_stretch(AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start,
                                 int64_t count, int64_t* out) {
  int64_t i = 0;
  for (; i + kDraws <= count; i += kDraws) draw_batch(draw, table, seed, row, start + uint64_t(i), out + i, kDraws);
  // A batch of random numbers costs as much as a fifth of it one by one.
  if (count - i >= kDraws / 5) return draw_batch(draw, table, seed, row, start + uint64_t(i), out + i, count - i);
  for (; i < count; ++i) {
    Random128 random = philox_draw(seed, row, start + uint64_t(i));
    uint64_t column = draw.column(low_bits(random));
    out[i] = draw.item(column, table[column], high_bits(random));
  }
}

Tensor alias_sample_cpu(Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples) {
  return alias_sample(table, capacity, seed, start, num_samples,
                      [](const Tensor&, const uint64_t* table, const int64_t* capacity, const uint64_t* seed,
                         int64_t rows, int64_t n, uint64_t start, int64_t num_samples, int64_t* out) {
                        parallel_aligned(rows * num_samples, kDraws, [&](int64_t begin, int64_t end) {
                          while (begin < end) {
                            int64_t row = begin / num_samples, first = begin % num_samples;
                            int64_t count = std::min(num_samples - first, end - begin);
                            if (capacity[row] > 0) {
                              draw_stretch(AliasDraw(n, capacity[row]), table + row * n, *seed, uint64_t(row),
                                           start + uint64_t(first), count, out + begin);
                            } else {
                              std::fill(out + begin, out + begin + count, -1);
                            }
                            begin += count;
                          }
                        });
                      });
}

// The least of what the threads see.
void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

// Returns how many weights are positive; `invalid` gets whether one is no weight.
template <class T>
STE_OPS_CLONES int64_t key_stretch(const bits_t<T>* weights, uint64_t seed, uint64_t row, int64_t begin, int64_t end,
                                   double* keys, bool& invalid) {
  int64_t positive = 0;
  invalid = false;
  for (int64_t start = begin; start < end; start += kDraws) {
    RandomBlock<kDraws> random;
    philox_block(seed, row, uint64_t(start), random);
    int64_t count = std::min(kDraws, end - start);
    for (int64_t i = 0; i < count; ++i) {
      bits_t<T> w = weights[start + i];
      keys[start + i] = exponential_key<T>(w, random.low[i]);
      positive += magnitude<T>(w) != 0;
      invalid |= !is_weight<T>(w);
    }
  }
  return positive;
}

std::tuple<Tensor, Tensor> exponential_keys_cpu(Tensor weights, Tensor seed) {
  return exponential_keys(weights, seed,
                          [](auto type, const Tensor&, const auto* weights, const uint64_t* seed, int64_t rows,
                             int64_t n, double* keys, int64_t* positive) {
                            using T = typename decltype(type)::type;
                            for (int64_t row = 0; row < rows; ++row) {
                              const auto* w = weights + row * n;
                              std::atomic<int64_t> count(0), invalid(n);
                              parallel_aligned(n, kDraws, [&](int64_t begin, int64_t end) {
                                bool some_invalid;
                                count +=
                                    key_stretch<T>(w, *seed, uint64_t(row), begin, end, keys + row * n, some_invalid);
                                if (some_invalid)
                                  lower(invalid, std::find_if_not(w + begin, w + end, is_weight<T>) - w);
                              });
                              positive[row] = invalid < n ? -1 - invalid : count.load();
                            }
                          });
}

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
STE_OPS_CLONES bool bernoulli_stretch(const bits_t<T>* p, uint64_t seed, uint64_t start, bits_t<T>* out,
                                      int64_t count) {
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
        STD_TORCH_CHECK(invalid == rows * numel, "bernoulli_ste: p must be in [0, 1], got ",
                        load(bit_cast<T>(p[invalid])), " at index ", invalid.load());
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cpu));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cpu));
  m.impl("exponential_keys", TORCH_BOX(&exponential_keys_cpu));
  m.impl("bernoulli", TORCH_BOX(&bernoulli_cpu));
}

}  // namespace ste_ops
