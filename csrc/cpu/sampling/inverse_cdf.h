// Draws by the inverse CDF on the CPU: sums of short tiles of a row, then one tile a draw.
#pragma once

#include "cpu/sampling/short_sums.h"

namespace ste_ops {
namespace {

// Weights of one pass.
constexpr int64_t kPassTile = 4096;
// Weights of one sum, of which a draw looks at so many: more sums take memory, which more draws are worth.
constexpr int64_t kLongTile = 128, kShortTile = 16;
// Draws whose reads overlap.
constexpr int64_t kOverlap = 16;
// What the passes take for a weight, and a draw.
constexpr double kWeightNanoseconds = 2, kSearchNanoseconds = 120;

inline int64_t sum_tile(int64_t n, int64_t num_samples) { return num_samples < n / 160 ? kLongTile : kShortTile; }

// `num_samples` draws from a row of n weights.
inline double summed_nanoseconds(int64_t n, int64_t num_samples) {
  if (n <= kShortRow) return kShortWeightNanoseconds * double(n) + kShortDrawNanoseconds * double(num_samples);
  return kWeightNanoseconds * double(n) + kSearchNanoseconds * double(num_samples);
}

// The masses of a row, summed before each tile.
template <class T>
struct SummedRow {
  const bits_t<T>* weights;
  int64_t n, exponent, sum_tile;
  uint64_t total;
  const std::vector<uint64_t>& before;

  void prefetch(int64_t tile) const {
    const bits_t<T>* w = weights + tile * sum_tile;
    for (int64_t at = 0; at < sum_tile; at += 64 / int64_t(sizeof(T))) __builtin_prefetch(w + at);
  }

  // The item in the tile whose stretch has the unit in it.
  int64_t item_at(int64_t tile, uint64_t unit) const {
    const int64_t begin = tile * sum_tile;
    uint64_t masses[kLongTile];
    mass_tile<T>(weights + begin, std::min(sum_tile, n - begin), exponent, masses);
    uint64_t left = unit - before[tile];
    int64_t i = 0;
    for (; left >= masses[i]; ++i) left -= masses[i];
    return begin + i;
  }
};

// Draws first .. last - 1 of a row, so many at a time that their reads overlap.
template <class T>
struct DrawFromRow {
  SummedRow<T> row;
  uint64_t seed, number;
  int64_t* out;

  void operator()(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; i += kOverlap) {
      uint64_t units[kOverlap];
      int64_t tiles[kOverlap], count = std::min(kOverlap, last - i);
      for (int64_t k = 0; k < count; ++k) {
        units[k] = uniform_below(philox_draw(seed, number, uint64_t(i + k)), row.total);
        tiles[k] = stretch_at(row.before.data(), int64_t(row.before.size()), units[k]);
        row.prefetch(tiles[k]);
      }
      for (int64_t k = 0; k < count; ++k) out[i + k] = row.item_at(tiles[k], units[k]);
    }
  }
};

// `num_samples` draws from rows of n weights, one after the other.
template <class T>
class RowDrawer {
 public:
  RowDrawer(int64_t n, int64_t num_samples)
      : n_(n),
        num_samples_(num_samples),
        sum_tile_(sum_tile(n, num_samples)),
        tiles_(n, kPassTile, kWeightNanoseconds),
        before_(size_t(n <= kShortRow ? 0 : (n + sum_tile_ - 1) / sum_tile_)) {}

  // Returns the total.
  int64_t draw(const bits_t<T>* weights, uint64_t seed, uint64_t number, int64_t* out) {
    return n_ <= kShortRow ? draw_from_short_row<T>(weights, n_, seed, number, num_samples_, out)
                           : draw_from_tiles(weights, seed, number, out);
  }

 private:
  int64_t draw_from_tiles(const bits_t<T>* weights, uint64_t seed, uint64_t number, int64_t* out) {
    Row row = tiles_.measure(weights);
    const int64_t exponent = row.invalid == 0 && row.largest != 0 ? mass_exponent<T>(row, n_) : 0;
    if (row.invalid == 0 && row.largest != 0) row.total = sum_masses(weights, exponent);
    const int64_t total = total_of(row, n_);
    if (total <= 0) {
      std::fill(out, out + num_samples_, -1);
      return total;
    }
    const DrawFromRow<T> draw{{weights, n_, exponent, sum_tile_, row.total, before_}, seed, number, out};
    share_out(num_samples_, kSearchNanoseconds, draw);
    return total;
  }

  uint64_t sum_masses(const bits_t<T>* weights, int64_t exponent) {
    tiles_.each([&](int64_t, int64_t begin, int64_t count) {
      mass_sums<T>(weights + begin, count, exponent, sum_tile_, before_.data() + begin / sum_tile_);
    });
    return exclusive_scan(before_);
  }

  int64_t n_, num_samples_, sum_tile_;
  RowTiles<T> tiles_;
  std::vector<uint64_t> before_;  // the mass before each tile
};

}  // namespace
}  // namespace ste_ops
