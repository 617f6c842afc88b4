// Draws by the inverse CDF on the CPU: sums of short tiles of a row, then one tile a draw.
#pragma once

#include "core/sampling/inverse_cdf.h"
#include "cpu/sampling/masses.h"

namespace ste_ops {
namespace {

// Weights of one pass.
constexpr int64_t kPassTile = 4096;
// Weights of one sum. A draw looks at so many of them.
constexpr int64_t kSumTile = 128;
// Draws whose reads overlap.
constexpr int64_t kOverlap = 16;
// What the passes take for a weight, and a draw.
constexpr double kWeightNanoseconds = 2, kSearchNanoseconds = 120;

// The masses of a row, summed before each tile.
template <class T>
struct SummedRow {
  const bits_t<T>* weights;
  int64_t n, exponent;
  uint64_t total;
  const std::vector<uint64_t>& before;

  // The last tile that begins at or before a unit of the masses laid end to end, without a branch to mispredict.
  int64_t tile_at(uint64_t unit) const {
    const uint64_t* low = before.data();
    for (size_t count = before.size(); count > 1; count -= count / 2) {
      low += int64_t(choose(low[count / 2] <= unit, count / 2, 0));
    }
    return low - before.data();
  }

  void prefetch(int64_t tile) const {
    const bits_t<T>* w = weights + tile * kSumTile;
    for (int64_t at = 0; at < kSumTile; at += 64 / int64_t(sizeof(T))) __builtin_prefetch(w + at);
  }

  // The item in the tile whose stretch has the unit in it.
  int64_t item_at(int64_t tile, uint64_t unit) const {
    int64_t begin = tile * kSumTile;
    uint64_t masses[kSumTile];
    mass_tile<T>(weights + begin, std::min(kSumTile, n - begin), exponent, masses);
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
        tiles[k] = row.tile_at(units[k]);
        row.prefetch(tiles[k]);
      }
      for (int64_t k = 0; k < count; ++k) out[i + k] = row.item_at(tiles[k], units[k]);
    }
  }
};

// Rows of n weights, one after the other.
template <class T>
class RowDrawer {
 public:
  explicit RowDrawer(int64_t n)
      : n_(n), tiles_(n, kPassTile, kWeightNanoseconds), before_((n + kSumTile - 1) / kSumTile) {}

  // Returns the total.
  int64_t draw(const bits_t<T>* weights, uint64_t seed, uint64_t number, int64_t num_samples, int64_t* out) {
    Row row = tiles_.measure(weights);
    const int64_t exponent = row.invalid == 0 && row.largest != 0 ? mass_exponent<T>(row, n_) : 0;
    if (row.invalid == 0 && row.largest != 0) row.total = sum_masses(weights, exponent);
    const int64_t total = total_of(row, n_);
    if (total <= 0) {
      std::fill(out, out + num_samples, -1);
      return total;
    }
    const DrawFromRow<T> draw{{weights, n_, exponent, row.total, before_}, seed, number, out};
    share_out(num_samples, kSearchNanoseconds, draw);
    return total;
  }

 private:
  uint64_t sum_masses(const bits_t<T>* weights, int64_t exponent) {
    tiles_.each([&](int64_t, int64_t begin, int64_t count) {
      mass_sums<T>(weights + begin, count, exponent, kSumTile, before_.data() + begin / kSumTile);
    });
    return exclusive_scan(before_);
  }

  int64_t n_;
  RowTiles<T> tiles_;
  std::vector<uint64_t> before_;  // the mass before each tile
};

}  // namespace
}  // namespace ste_ops
