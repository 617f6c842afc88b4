// Builds alias tables on the CPU: rows side by side where they are short, tiles of a row where it is long.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../../core/alias.h"
#include "draws.h"

namespace ste_ops {
namespace {

// Items of one pass over a row.
constexpr int64_t kTile = 8192;

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

// What is known of a tile; the sums become those before it.
struct TileState {
  Row row;
  uint64_t mass = 0, exceeded = 0;
  int64_t heavies = 0;
};

// Pads the masses in place and sums what is heavy in them.
inline void pad_tile(uint64_t* masses, int64_t count, uint64_t prefix, Columns columns, TileState& tile) {
  uint64_t before = padded(prefix, columns.padding), exceeded = 0;
  int64_t heavies = 0;
  for (int64_t i = 0; i < count; ++i) {
    prefix += masses[i];
    uint64_t after = padded(prefix, columns.padding);
    masses[i] = after - before;
    exceeded += exceeds(masses[i], columns.capacity);
    heavies += masses[i] > columns.capacity;
    before = after;
  }
  tile.exceeded = exceeded;
  tile.heavies = heavies;
}

// Puts the items of a tile where the merge finds them.
inline void place_tile(const uint64_t* masses, int64_t begin, int64_t count, int64_t lights, TileState before,
                       Columns columns, uint64_t* bounds, int64_t* items) {
  int64_t heavies = before.heavies;
  uint64_t exceeded = before.exceeded, lacked = lacked_before(begin, before.mass, exceeded, columns);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t mass = masses[i];
    AliasPlace place(mass, lights, begin + i, heavies, lacked, exceeded, columns.capacity);
    bounds[place.bound] = place.value;
    items[place.item] = begin + i;
    heavies += mass > columns.capacity;
    exceeded += exceeds(mass, columns.capacity);
    lacked += lacks(mass, columns.capacity);
  }
}

// The sum of a field over the tiles; the field becomes the sum before each.
template <class V>
V exclusive_scan(std::vector<TileState>& tiles, V TileState::* field) {
  V total = 0;
  for (TileState& tile : tiles) {
    V value = tile.*field;
    tile.*field = total;
    total += value;
  }
  return total;
}

// One row's table, and what it takes to build it; used again for rows of the same length.
template <class T>
class RowBuilder {
 public:
  explicit RowBuilder(int64_t n)
      : n_(n), tiles_((n + kTile - 1) / kTile), bounds_(new uint64_t[n + 2]), items_(new int64_t[n + 1]) {}

  // Returns the capacity.
  int64_t build(const bits_t<T>* weights, uint64_t* table) {
    Row row;
    for_tiles([&](int64_t begin, int64_t count, TileState& tile) {
      tile = TileState();
      const bits_t<T>* w = weights + begin;
      if (inspect_tile<T>(w, count, tile.row.largest)) return;
      tile.row.invalid = uint64_t(n_ - begin - (std::find_if_not(w, w + count, is_weight<T>) - w));
    });
    for (const TileState& tile : tiles_) {
      row.largest = std::max(row.largest, tile.row.largest);
      row.invalid = std::max(row.invalid, tile.row.invalid);
    }
    if (row.invalid == 0 && row.largest != 0) set_masses(weights, row, table);
    int64_t capacity = capacity_of(row, n_);
    if (capacity > 0) {
      pair(columns_of(row.total, n_), table);
    } else {
      std::fill(table, table + n_, 0);
    }
    return capacity;
  }

 private:
  void set_masses(const bits_t<T>* weights, Row& row, uint64_t* masses) {
    int64_t exponent = coarse_exponent<T>(row.largest, n_);
    for_tiles([&](int64_t begin, int64_t count, TileState& tile) {
      tile.row.coarse_total = coarse_tile<T>(weights + begin, count, exponent);
    });
    for (const TileState& tile : tiles_) row.coarse_total += tile.row.coarse_total;
    exponent = mass_exponent<T>(row, n_);
    for_tiles([&](int64_t begin, int64_t count, TileState& tile) {
      tile.mass = mass_tile<T>(weights + begin, count, exponent, masses + begin);
    });
    row.total = exclusive_scan(tiles_, &TileState::mass);
  }

  // Turns the masses in `table` into its entries.
  void pair(Columns columns, uint64_t* table) {
    for_tiles([&](int64_t begin, int64_t count, TileState& tile) {
      pad_tile(table + begin, count, tile.mass, columns, tile);
    });
    uint64_t exceeded = exclusive_scan(tiles_, &TileState::exceeded);
    int64_t heavies = exclusive_scan(tiles_, &TileState::heavies), lights = n_ - heavies;
    for_tiles([&](int64_t begin, int64_t count, TileState& tile) {
      place_tile(table + begin, begin, count, lights, tile, columns, bounds_.get(), items_.get());
    });
    bounds_[lights] = exceeded;  // as much is lacked in all
    bounds_[n_ + 1] = AliasMerge::kEnd;
    items_[n_] = 0;
    AliasMerge start(bounds_.get(), items_.get(), n_, heavies, columns.capacity);
    for_tiles([&](int64_t begin, int64_t count, TileState&) {
      AliasMerge merge = start;
      merge.seek(begin);
      for (int64_t step = 0; step < count; ++step) merge.step(table);
    });
  }

  // f(begin, count, state) for every tile, in parallel where there is more than one.
  template <class F>
  void for_tiles(const F& f) {
    torch::stable::parallel_for(0, int64_t(tiles_.size()), 2, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) f(t * kTile, std::min(kTile, n_ - t * kTile), tiles_[t]);
    });
  }

  int64_t n_;
  std::vector<TileState> tiles_;
  std::unique_ptr<uint64_t[]> bounds_;
  std::unique_ptr<int64_t[]> items_;
};

template <class T>
void build_tables(const bits_t<T>* weights, int64_t rows, int64_t n, uint64_t* table, int64_t* capacity) {
  auto build = [&](int64_t first, int64_t last) {
    RowBuilder<T> builder(n);
    for (int64_t row = first; row < last; ++row) capacity[row] = builder.build(weights + row * n, table + row * n);
  };
  if (n > kGrain) return build(0, rows);
  torch::stable::parallel_for(0, rows, kGrain / n, build);
}

}  // namespace
}  // namespace ste_ops
