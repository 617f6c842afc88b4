// Rows of weights and their integer masses, tile by tile.
#pragma once

#include <algorithm>
#include <vector>

#include "core/sampling/alias.h"
#include "cpu/sampling/draws.h"
#include "cpu/share.h"

namespace ste_ops {
namespace {

// Whether every weight is valid; `largest` gets the greatest magnitude.
template <class T>
STE_OPS_INLINE bool inspect(const bits_t<T>* weights, int64_t count, uint64_t& largest) {
  bits_t<T> greatest = 0, greatest_signed = 0;
  for (int64_t i = 0; i < count; ++i) {
    greatest = std::max(greatest, magnitude<T>(weights[i]));
    greatest_signed = std::max(greatest_signed, weights[i]);
  }
  largest = greatest;
  return greatest < kInfinity<T> && !is_negative<T>(greatest_signed);
}

// Whether the scale leaves every weight an integer.
template <class T>
STE_OPS_INLINE bool all_integers(const bits_t<T>* weights, int64_t count, int64_t exponent) {
  bits_t<T> least = bits_t<T>(~bits_t<T>(0));  // the least positive one minus 1; a zero wraps round
  for (int64_t i = 0; i < count; ++i) least = std::min(least, bits_t<T>(magnitude<T>(weights[i]) - 1));
  return is_integer(scaled<T>(magnitude<T>(bits_t<T>(least + 1))), exponent);
}

template <class T>
STE_OPS_INLINE uint64_t coarse_sum(const bits_t<T>* weights, int64_t count, int64_t exponent) {
  uint64_t sum = 0;
  if (all_integers<T>(weights, count, exponent)) {
    for (int64_t i = 0; i < count; ++i) sum += integer_mass<T>(weights[i], exponent);
  } else {
    for (int64_t i = 0; i < count; ++i) sum += coarse_mass<T>(weights[i], exponent);
  }
  return sum;
}

// Writes the masses and returns their sum.
template <class T>
STE_OPS_INLINE uint64_t write_masses(const bits_t<T>* weights, int64_t count, int64_t exponent, uint64_t* masses) {
  uint64_t sum = 0;
  if (all_integers<T>(weights, count, exponent)) {
    for (int64_t i = 0; i < count; ++i) sum += masses[i] = integer_mass<T>(weights[i], exponent);
  } else {
    for (int64_t i = 0; i < count; ++i) sum += masses[i] = mass<T>(weights[i], exponent);
  }
  return sum;
}

// The same of a tile, each a function of its own.
template <class T>
STE_OPS_CLONES bool inspect_tile(const bits_t<T>* weights, int64_t count, uint64_t& largest) {
  return inspect<T>(weights, count, largest);
}

template <class T>
STE_OPS_CLONES uint64_t coarse_tile(const bits_t<T>* weights, int64_t count, int64_t exponent) {
  return coarse_sum<T>(weights, count, exponent);
}

template <class T>
STE_OPS_CLONES uint64_t mass_tile(const bits_t<T>* weights, int64_t count, int64_t exponent, uint64_t* masses) {
  return write_masses<T>(weights, count, exponent, masses);
}

// Writes the sum of the masses of each `tile` weights.
template <class T>
STE_OPS_CLONES void mass_sums(const bits_t<T>* weights, int64_t count, int64_t exponent, int64_t tile, uint64_t* sums) {
  bool integers = all_integers<T>(weights, count, exponent);
  for (int64_t begin = 0; begin < count; begin += tile) {
    int64_t end = std::min(begin + tile, count);
    uint64_t sum = 0;
    if (integers) {
      for (int64_t i = begin; i < end; ++i) sum += integer_mass<T>(weights[i], exponent);
    } else {
      for (int64_t i = begin; i < end; ++i) sum += mass<T>(weights[i], exponent);
    }
    *sums++ = sum;
  }
}

// Sums become the sums before each; returns that of all.
inline uint64_t exclusive_scan(std::vector<uint64_t>& sums) {
  uint64_t total = 0;
  for (uint64_t& sum : sums) {
    const uint64_t value = sum;
    sum = total;
    total += value;
  }
  return total;
}

// A row of n weights in tiles, which threads take side by side.
template <class T>
class RowTiles {
 public:
  // `nanoseconds` is what all passes together take for a weight.
  RowTiles(int64_t n, int64_t tile, double nanoseconds)
      : n_(n), tile_(tile), shared_(double(n) * nanoseconds >= kWorthARegion), tiles_((n + tile - 1) / tile) {}

  int64_t count() const { return int64_t(tiles_.size()); }

  // f(t, begin, count) for every tile.
  template <class F>
  void each(const F& f) const {
    const auto run = [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) f(t, t * tile_, std::min(tile_, n_ - t * tile_));
    };
    if (!shared_) return run(0, count());
    torch::stable::parallel_for(
        0, count(), int64_t(kWorthAThread) / tile_, run);  // a pass takes 1 to 3 ns for a weight
  }

  // All of a Row but its total. The coarse masses of a tile are summed while it is in the cache, under the exponent
  // that its own largest weight asks for: mostly that is the row's, and the weights come from memory once.
  Row measure(const bits_t<T>* weights) {
    each([&](int64_t t, int64_t begin, int64_t count) {
      Row tile;
      const bits_t<T>* w = weights + begin;
      if (!inspect_tile<T>(w, count, tile.largest)) {
        tile.invalid = uint64_t(n_ - begin - (std::find_if_not(w, w + count, is_weight<T>) - w));
      } else if (tile.largest != 0) {
        tile.coarse_total = coarse_tile<T>(w, count, coarse_exponent<T>(tile.largest, n_));
      }
      tiles_[t] = tile;
    });
    Row row;
    for (const Row& tile : tiles_) {
      row.largest = std::max(row.largest, tile.largest);
      row.invalid = std::max(row.invalid, tile.invalid);
    }
    if (row.invalid != 0 || row.largest == 0) return row;
    int64_t exponent = coarse_exponent<T>(row.largest, n_);
    each([&](int64_t t, int64_t begin, int64_t count) {
      Row& tile = tiles_[t];
      if (tile.largest == 0 || coarse_exponent<T>(tile.largest, n_) == exponent) return;
      tile.coarse_total = coarse_tile<T>(weights + begin, count, exponent);
    });
    for (const Row& tile : tiles_) row.coarse_total += tile.coarse_total;
    return row;
  }

 private:
  int64_t n_, tile_;
  bool shared_;
  std::vector<Row> tiles_;
};

}  // namespace
}  // namespace ste_ops
