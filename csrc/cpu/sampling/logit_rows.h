// Rows of logits on the CPU. A block is several short rows, or a tile of a long one: at most kRowTile elements, which
// every loop passes over at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/sampling/draws.h"
#include "cpu/share.h"
#include "ops/sampling/categorical.h"

namespace ste_ops {

// Threads share the rows where there are so many or more, and the tiles of each row where there are fewer.
constexpr int64_t kRowsForThreads = 16;
// What a logit takes, noise and exponential.
constexpr double kLogitNanoseconds = 10;

template <class F>
void parallel_rows(int64_t rows, int64_t n, const F& f) {
  if (n > kRowTile && rows < kRowsForThreads) return f(0, rows);
  share_out(rows, kLogitNanoseconds * double(n), f);
}

// f(tile, begin, end) for every tile of a row of n.
template <class F>
void each_tile(int64_t n, const F& f) {
  if (n <= kRowTile) return f(0, 0, n);
  share_out((n + kRowTile - 1) / kRowTile, kLogitNanoseconds * kRowTile, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) f(t, t * kRowTile, std::min((t + 1) * kRowTile, n));
  });
}

inline int64_t tiles_of(int64_t n) { return (n + kRowTile - 1) / kRowTile; }

// Memory that nothing clears.
template <class A>
std::unique_ptr<A[]> scratch(int64_t numel) {
  return std::unique_ptr<A[]>(new A[size_t(numel)]);
}

// The sum of one tile.
template <class A>
STE_OPS_INLINE A tile_sum(const A* x, int64_t n) {
  int width = kRowLanes;
  while (width / 2 >= n && width > 1) width /= 2;
  A lane[kRowLanes];
  for (int l = 0; l < width; ++l) lane[l] = A(0);
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes) {
    for (int l = 0; l < kRowLanes; ++l) lane[l] += x[i + l];
  }
  for (int l = 0; i + l < n; ++l) lane[l] += x[i + l];
  for (width /= 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
}

// The sum of a row from those of its tiles.
template <class S, class Get>
auto sum_of_tiles(const S* tiles, int64_t count, Get get) {
  decltype(get(tiles[0])) stream[kRowStreams] = {};
  if (count == 1) return get(tiles[0]);
  for (int64_t t = 0; t < count; ++t) stream[t % kRowStreams] = stream[t % kRowStreams] + get(tiles[t]);
  for (int width = kRowStreams / 2; width > 0; width /= 2) {
    for (int s = 0; s < width; ++s) stream[s] = stream[s] + stream[s + width];
  }
  return stream[0];
}

template <class A>
STE_OPS_INLINE A largest_of(const A* x, int64_t n) {
  A best = x[0];
  if (n >= 2 * kRowLanes) {
    A lane[kRowLanes];
    for (int l = 0; l < kRowLanes; ++l) lane[l] = x[l];
    int64_t i = kRowLanes;
    for (; i + kRowLanes <= n; i += kRowLanes) {
      for (int l = 0; l < kRowLanes; ++l) lane[l] = MaxOrNaN()(lane[l], x[i + l]);
    }
    for (int l = 0; i + l < n; ++l) lane[l] = MaxOrNaN()(lane[l], x[i + l]);
    for (int l = 0; l < kRowLanes; ++l) best = MaxOrNaN()(best, lane[l]);
  } else {
    for (int64_t i = 1; i < n; ++i) best = MaxOrNaN()(best, x[i]);
  }
  return best;
}

// The largest logit of each of `count` rows.
template <class T>
STE_OPS_CLONES void largest_logits(const T* x, int64_t count, int64_t n, arithmetic_t<T>* largest) {
  arithmetic_t<T> wide[kRowTile];
  for (int64_t i = 0; i < count * n; ++i) wide[i] = load(x[i]);
  for (int64_t r = 0; r < count; ++r) largest[r] = largest_of(wide + r * n, n);
}

template <class A>
STE_OPS_INLINE void add_noise(uint64_t seed, uint64_t place, int64_t count, A* keys) {
  constexpr int kHalf = kDraws / 2;
  A noise[kDraws];
  int64_t skip = int64_t(place & 1);
  for (int64_t done = 0; done < count; skip = 0) {
    RandomBlock<kHalf> random;
    philox_block(seed, 0, (place + uint64_t(done)) >> 1, random);
    for (int l = 0; l < kHalf; ++l) {
      noise[2 * l] = gumbel<A>(random.low[l]);
      noise[2 * l + 1] = gumbel<A>(random.high[l]);
    }
    int64_t some = std::min<int64_t>(kDraws - skip, count - done);
    for (int64_t i = 0; i < some; ++i) keys[done + i] += noise[skip + i];
    done += some;
  }
}

// The logits minus the row's largest, plus the noise of their places where it is asked for.
template <class T>
STE_OPS_CLONES void block_keys(
    const T* x, int64_t count, int64_t n, const arithmetic_t<T>* largest, bool noisy, uint64_t seed, uint64_t place,
    arithmetic_t<T>* keys) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < n; ++i) keys[r * n + i] = load(x[r * n + i]) - largest[r];
  }
  if (noisy) add_noise(seed, place, count * n, keys);
}

// As many rows as one block holds, not past `end` nor past the rows of one seed.
inline int64_t rows_at_once(const RowShape& shape, int64_t row, int64_t end) {
  int64_t fit = std::max<int64_t>(1, kRowTile / shape.n);
  return std::min({fit, end - row, shape.per_seed - shape.row_of_seed(row)});
}

// The keys of `count` rows from `row` on, and the largest logit of each.
template <class T>
void row_keys(
    const RowShape& shape, const T* x, const uint64_t* seeds, int64_t row, int64_t count, bool noisy,
    arithmetic_t<T>* largest, arithmetic_t<T>* keys) {
  using A = arithmetic_t<T>;
  const int64_t n = shape.n;
  const uint64_t seed = seeds[shape.seed(row)], place = shape.place(row);
  x += row * n;
  if (n <= kRowTile) {
    largest_logits(x, count, n, largest);
    return block_keys(x, count, n, largest, noisy, seed, place, keys);
  }
  std::vector<A> tiles(size_t(tiles_of(n)));
  each_tile(n, [&](int64_t t, int64_t begin, int64_t end) { largest_logits(x + begin, 1, end - begin, &tiles[t]); });
  *largest = *std::max_element(tiles.begin(), tiles.end());
  for (A tile : tiles) *largest = MaxOrNaN()(*largest, tile);
  each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
    block_keys(x + begin, 1, end - begin, largest, noisy, seed, place + uint64_t(begin), keys + begin);
  });
}

// f(row, count, largest, keys) over all rows, for as many at a time as a block holds.
template <class T, class F>
void each_rows(const RowShape& shape, const T* x, const uint64_t* seeds, bool noisy, const F& f) {
  using A = arithmetic_t<T>;
  parallel_rows(shape.rows, shape.n, [&](int64_t begin, int64_t end) {
    auto keys = scratch<A>(std::max(shape.n, kRowTile)), largest = scratch<A>(kRowTile);
    for (int64_t row = begin; row < end;) {
      int64_t count = rows_at_once(shape, row, end);
      row_keys(shape, x, seeds, row, count, noisy, largest.get(), keys.get());
      f(row, count, largest.get(), keys.get());
      row += count;
    }
  });
}

// Says what is wrong with a row that cannot be drawn from.
template <class T>
void refuse_row(const char* op, const T* x, int64_t n, int64_t row) {
  for (int64_t i = 0; i < n; ++i) {
    const auto value = load(x[row * n + i]);
    STE_CHECK(
        value <= kHuge<arithmetic_t<T>>, op, ": logits must be finite or -inf, got ", value, " at index ", i,
        " of row ", row);
  }
  STE_CHECK(false, op, ": logits must have a category above -inf in every row, got only -inf in row ", row);
}

}  // namespace ste_ops
