#include "../sampling.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "../library.h"
#include "loop.h"

namespace ste_ops {
namespace {

// Items of one pass over a row, and draws of one pass over the registers.
constexpr int64_t kTile = 8192;
constexpr int64_t kDraws = 128;

// Whether every weight is valid; `largest` gets the greatest magnitude.
template <class T>
STE_OPS_CLONES bool inspect_tile(const bits_t<T>* weights, int64_t count, uint64_t& largest) {
  bits_t<T> greatest = 0, greatest_signed = 0;
  for (int64_t i = 0; i < count; ++i) {
    greatest = std::max(greatest, magnitude<T>(weights[i]));
    greatest_signed = std::max(greatest_signed, weights[i]);
  }
  largest = greatest;
  return greatest < kInfinity<T> && !is_negative<T>(greatest_signed);
}

template <class T>
STE_OPS_CLONES uint64_t coarse_tile(const bits_t<T>* weights, int64_t count, int64_t exponent) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += coarse_mass<T>(weights[i], exponent);
  return sum;
}

template <class T>
STE_OPS_CLONES uint64_t mass_tile(const bits_t<T>* weights, int64_t count, int64_t exponent, uint64_t* masses) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t m = mass<T>(weights[i], exponent);
    masses[i] = m;
    sum += m;
  }
  return sum;
}

// Pads the masses in place; returns the tile's excess.
uint64_t pad_tile(uint64_t* masses, int64_t count, uint64_t prefix, Columns columns) {
  uint64_t before = padded(prefix, columns.padding), excess = 0;
  for (int64_t i = 0; i < count; ++i) {
    prefix += masses[i];
    uint64_t after = padded(prefix, columns.padding);
    masses[i] = after - before;
    excess += exceeds(masses[i], columns.capacity);
    before = after;
  }
  return excess;
}

// From padded masses to the prefix sums of what each item lacks and exceeds; the masses stand where the deficits go.
void scan_tile(uint64_t* deficit, uint64_t* excess, int64_t count, uint64_t lacked, uint64_t exceeded,
               uint64_t capacity) {
  for (int64_t i = 0; i < count; ++i) {
    uint64_t mass = deficit[i];
    lacked += lacks(mass, capacity);
    exceeded += exceeds(mass, capacity);
    deficit[i] = lacked;
    excess[i] = exceeded;
  }
}

// A row's weights in tiles: f(tile, row, begin, count) for every tile of every row, in parallel.
template <class F>
void for_tiles(int64_t rows, int64_t n, const F& f) {
  int64_t tiles = (n + kTile - 1) / kTile;
  torch::stable::parallel_for(0, rows * tiles, std::max<int64_t>(1, kGrain / std::min(n, kTile)),
                              [&](int64_t first, int64_t last) {
                                for (int64_t tile = first; tile < last; ++tile) {
                                  int64_t begin = tile % tiles * kTile;
                                  f(tile, tile / tiles, begin, std::min(kTile, n - begin));
                                }
                              });
}

void exclusive_scan(uint64_t* values, int64_t count, uint64_t& total) {
  total = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t value = values[i];
    values[i] = total;
    total += value;
  }
}

template <class T>
void build_alias(const bits_t<T>* weights, int64_t rows, int64_t n, uint64_t* deficit, uint64_t* excess,
                 uint64_t* table, int64_t* capacity) {
  int64_t tiles = (n + kTile - 1) / kTile;
  std::vector<Row> row(rows), of_tile(rows * tiles);
  std::vector<uint64_t> mass_before(rows * tiles), exceeded(rows * tiles);
  std::vector<Columns> columns(rows);

  for_tiles(rows, n, [&](int64_t tile, int64_t r, int64_t begin, int64_t count) {
    const bits_t<T>* w = weights + r * n + begin;
    if (inspect_tile<T>(w, count, of_tile[tile].largest)) return;
    int64_t first = std::find_if_not(w, w + count, is_weight<T>) - w;
    of_tile[tile].invalid = uint64_t(n - begin - first);
  });
  for (int64_t tile = 0; tile < rows * tiles; ++tile) {
    Row& r = row[tile / tiles];
    r.largest = std::max(r.largest, of_tile[tile].largest);
    r.invalid = std::max(r.invalid, of_tile[tile].invalid);
  }
  for_tiles(rows, n, [&](int64_t tile, int64_t r, int64_t begin, int64_t count) {
    if (row[r].invalid == 0) {
      of_tile[tile].coarse_total =
          coarse_tile<T>(weights + r * n + begin, count, coarse_exponent<T>(row[r].largest, n));
    }
  });
  for (int64_t tile = 0; tile < rows * tiles; ++tile) row[tile / tiles].coarse_total += of_tile[tile].coarse_total;
  for_tiles(rows, n, [&](int64_t tile, int64_t r, int64_t begin, int64_t count) {
    if (row[r].invalid == 0) {
      mass_before[tile] =
          mass_tile<T>(weights + r * n + begin, count, mass_exponent<T>(row[r], n), deficit + r * n + begin);
    }
  });
  for (int64_t r = 0; r < rows; ++r) {
    exclusive_scan(mass_before.data() + r * tiles, tiles, row[r].total);
    columns[r] = columns_of(row[r].total, n);
    capacity[r] = capacity_of(row[r], n);
  }
  for_tiles(rows, n, [&](int64_t tile, int64_t r, int64_t begin, int64_t count) {
    if (capacity[r] > 0) exceeded[tile] = pad_tile(deficit + r * n + begin, count, mass_before[tile], columns[r]);
  });
  for (int64_t r = 0; r < rows; ++r) {
    uint64_t total;
    exclusive_scan(exceeded.data() + r * tiles, tiles, total);
  }
  for_tiles(rows, n, [&](int64_t tile, int64_t r, int64_t begin, int64_t count) {
    if (capacity[r] <= 0) return;
    uint64_t lacked = lacked_before(begin, mass_before[tile], exceeded[tile], columns[r]);
    scan_tile(deficit + r * n + begin, excess + r * n + begin, count, lacked, exceeded[tile], columns[r].capacity);
  });
  for_tiles(rows, n, [&](int64_t, int64_t r, int64_t begin, int64_t count) {
    uint64_t* out = table + r * n;
    if (capacity[r] <= 0) {
      std::fill(out + begin, out + begin + count, 0);
      return;
    }
    AliasColumns<Walk> column(deficit + r * n, excess + r * n, columns[r].capacity, n);
    for (int64_t i = begin; i < begin + count; ++i) out[i] = column.entry(i);
  });
}

std::tuple<Tensor, Tensor> alias_table_cpu(Tensor weights) {
  return alias_table(weights, [](auto type, const Tensor&, auto... arguments) {
    build_alias<typename decltype(type)::type>(arguments...);
  });
}

// The columns of a batch are known before the first entry is read, so that the reads overlap.
STE_OPS_CLONES void draw_batch(AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start,
                               int64_t* out) {
  RandomBlock<kDraws> random;
  uint64_t column[kDraws];
  philox_block(seed, row, start, random);
  for (int i = 0; i < kDraws; ++i) {
    column[i] = draw.column(random.low[i]);
    __builtin_prefetch(table + column[i]);
  }
  for (int i = 0; i < kDraws; ++i) out[i] = draw.item(column[i], table[column[i]], random.high[i]);
}

void draw_stretch(AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start, int64_t count,
                  int64_t* out) {
  int64_t i = 0;
  for (; i + kDraws <= count; i += kDraws) draw_batch(draw, table, seed, row, start + uint64_t(i), out + i);
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

// The least of what the threads see.
void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
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
  m.impl("bernoulli", TORCH_BOX(&bernoulli_cpu));
}

}  // namespace ste_ops
