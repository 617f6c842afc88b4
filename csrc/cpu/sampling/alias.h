// Builds alias tables on the CPU: rows side by side where they are short, tiles of a row where it is long. Beside the
// table itself that takes an eighth of a byte a category.
#pragma once

#include <memory>

#include "cpu/sampling/masses.h"
#include "cpu/sampling/sweep.h"

namespace ste_ops {
namespace {

// Items of one pass over a row.
constexpr int64_t kTile = 8192;
// What a category takes.
constexpr double kBuildNanoseconds = 12;

// Pads the masses of a tile in place, notes which are heavy, and sums what they exceed the capacity by.
inline void pad_tile(
    uint64_t* masses, int64_t count, uint64_t prefix, Columns columns, uint64_t* heavy_bits, TileSums& sums) {
  uint64_t before = padded(prefix, columns.padding), exceeded = 0;
  int64_t heavies = 0;
  for (int64_t begin = 0; begin < count; begin += 64) {
    uint64_t bits = 0;
    for (int64_t i = begin; i < std::min(begin + 64, count); ++i) {
      prefix += masses[i];
      uint64_t after = padded(prefix, columns.padding);
      uint64_t mass = after - before, heavy = mass > columns.capacity;
      masses[i] = mass;
      exceeded += exceeds(mass, columns.capacity);
      bits |= heavy << (i - begin);
      before = after;
    }
    heavy_bits[begin / 64] = bits;
    heavies += __builtin_popcountll(bits);
  }
  sums.exceeded = exceeded;
  sums.heavies = heavies;
}

// Builds the table of one row, and keeps the memory that this takes for the next row of the same length.
template <class T>
class RowBuilder {
 public:
  explicit RowBuilder(int64_t n)
      : n_(n),
        tiles_(n, kTile, kBuildNanoseconds),
        sums_(tiles_.count() + 1),
        heavy_bits_(new uint64_t[(n + 63) / 64]) {}

  // Returns the capacity.
  int64_t build(const bits_t<T>* weights, uint64_t* table) {
    Row row = tiles_.measure(weights);
    if (row.invalid == 0 && row.largest != 0) {
      int64_t exponent = mass_exponent<T>(row, n_);
      // The masses stand in the table until its entries replace them.
      tiles_.each([&](int64_t t, int64_t begin, int64_t count) {
        sums_[t].mass = mass_tile<T>(weights + begin, count, exponent, table + begin);
      });
      row.total = exclusive_scan(&TileSums::mass);
    }
    if (row.invalid != 0 || row.total == 0) {
      std::fill(table, table + n_, 0);
      return capacity_of(row, n_);
    }
    const Columns columns = columns_of(row.total, n_);
    pair(columns, table);
    return int64_t(columns.capacity);
  }

 private:
  void pair(Columns columns, uint64_t* table) {
    tiles_.each([&](int64_t t, int64_t begin, int64_t count) {
      pad_tile(table + begin, count, sums_[t].mass, columns, heavy_bits_.get() + begin / 64, sums_[t]);
    });
    exclusive_scan(&TileSums::exceeded);
    exclusive_scan(&TileSums::heavies);
    for (int64_t t = 0; t <= tiles_.count(); ++t) {
      sums_[t].lacked = lacked_before(std::min(t * kTile, n_), sums_[t].mass, sums_[t].exceeded, columns);
    }
    Sweep sweep(table, n_, heavy_bits_.get(), sums_, kTile, columns.capacity);
    sweep.run(std::clamp(tiles_.count() / 8, int64_t(1), int64_t(64)));
  }

  // The sums that the tiles have in a field become the sums before each tile; the sum of all stands behind them and is
  // returned.
  template <class V>
  V exclusive_scan(V TileSums::* field) {
    V total = 0;
    sums_.back().*field = 0;
    for (TileSums& tile : sums_) {
      V value = tile.*field;
      tile.*field = total;
      total += value;
    }
    return total;
  }

  int64_t n_;
  RowTiles<T> tiles_;
  std::vector<TileSums> sums_;
  std::unique_ptr<uint64_t[]> heavy_bits_;
};

// The tables of rows first .. last - 1.
template <class T>
struct BuildRows {
  const bits_t<T>* weights;
  int64_t n;
  uint64_t* table;
  int64_t* capacity;

  void operator()(int64_t first, int64_t last) const {
    RowBuilder<T> builder(n);
    for (int64_t row = first; row < last; ++row) capacity[row] = builder.build(weights + row * n, table + row * n);
  }
};

}  // namespace
}  // namespace ste_ops
