// The product of panels of rows and of lanes: counts tile by tile, and what becomes of a tile of counts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/binarize/popcount.h"

namespace ste_ops {

struct FreeWords {
  void operator()(uint32_t* words) const { ::operator delete(words, std::align_val_t(64)); }
};
using Words = std::unique_ptr<uint32_t[], FreeWords>;

// Words in whole cache lines, with no values yet.
inline Words new_words(int64_t count) {
  return Words(static_cast<uint32_t*>(::operator new(size_t(count) * sizeof(uint32_t), std::align_val_t(64))));
}

// What one output adds to its count: factor and offset of its feature, either of them maybe none.
template <class A>
struct Features {
  const A *scale, *bias;
  bool one_scale;  // for all features

  Features from(int64_t feature) const {
    return {scale && !one_scale ? scale + feature : scale, bias ? bias + feature : nullptr, one_scale};
  }
};

// Lanes that follow each other in the output.
struct LaneRun {
  int64_t lane, count, place;
};

// One side of a product: panels of bits, maybe of masks; for each row the number that its outputs are less twice the
// counts, where it is not one of all.
struct ProductSide {
  const uint32_t *panels, *masks;
  const int32_t* ones;
};

template <class T>
struct ProductBlock {
  using A = arithmetic_t<T>;
  ProductSide rows, lanes;
  int64_t row_count, words;
  int lane_panels;
  int32_t all;  // what every output is less twice its count, beside that of its row and its lane
  bool features_on_rows;
  Features<A> features;
  T* out;
  int64_t row_stride;
  const LaneRun* runs;
  int run_count;
};

// A tile of counts, made numbers of the output.
template <class T, int kPanels>
struct FinishTile {
  using A = arithmetic_t<T>;
  static constexpr int kLanes = kPanels * kPanelRows;
  const ProductBlock<T>& block;
  const int32_t* counts;
  int64_t first_row;
  int rows;

  STE_OPS_INLINE void operator()() const {
    const Features<A>& f = block.features;
    const bool by_lane = !block.features_on_rows;
    // What lies beyond the last lane is read nowhere.
    A scales[kLanes] = {}, offsets[kLanes] = {};
    int32_t ones[kLanes] = {};
    const int64_t covered = block.runs[block.run_count - 1].lane + block.runs[block.run_count - 1].count;
    if (block.lanes.ones) memcpy(ones, block.lanes.ones, size_t(covered) * sizeof(int32_t));
    if (f.scale && by_lane && !f.one_scale) memcpy(scales, f.scale, size_t(covered) * sizeof(A));
    if (f.bias && by_lane) memcpy(offsets, f.bias, size_t(covered) * sizeof(A));
    for (int r = 0; r < rows; ++r) {
      const int64_t row = first_row + r;
      A values[kLanes];
      const int32_t all = block.all + (block.rows.ones ? block.rows.ones[row] : 0);
      const int32_t* own = counts + r * kProductLanes;
      for (int l = 0; l < kLanes; ++l) values[l] = A(all + ones[l] - 2 * own[l]);
      if (f.scale) {
        if (f.one_scale || !by_lane) fill(scales, f.scale[f.one_scale ? 0 : row]);
        for (int l = 0; l < kLanes; ++l) values[l] *= scales[l];
      }
      if (f.bias) {
        if (!by_lane) fill(offsets, f.bias[row]);
        for (int l = 0; l < kLanes; ++l) values[l] += offsets[l];
      }
      put(values, block.out + row * block.row_stride);
    }
  }

  STE_OPS_INLINE static void fill(A* numbers, A number) {
    for (int l = 0; l < kLanes; ++l) numbers[l] = number;
  }

  STE_OPS_INLINE void put(const A* values, T* out) const {
    if (block.run_count == 1 && block.runs[0].count == kLanes) {
      T* own = out + block.runs[0].place;
      for (int l = 0; l < kLanes; ++l) own[l] = store<T>(values[l]);
      return;
    }
    T stored[kLanes];
    for (int l = 0; l < kLanes; ++l) stored[l] = store<T>(values[l]);
    for (int i = 0; i < block.run_count; ++i) {
      const LaneRun& run = block.runs[i];
      memcpy(out + run.place, stored + run.lane, size_t(run.count) * sizeof(T));
    }
  }
};

// All rows by one or two panels of lanes.
template <class T>
void multiply(Capability level, const Counters& counters, const ProductBlock<T>& block) {
  alignas(64) int32_t counts[kTileRows * kProductLanes];
  for (int64_t row = 0; row < block.row_count;) {
    const int64_t left = block.row_count - row;
    const int rows = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int64_t place = row / kPanelRows * block.words * kPanelRows + row % kPanelRows;
    const TileWords tile = {
        block.rows.panels + place,
        block.rows.masks ? block.rows.masks + place : nullptr,
        block.lanes.panels,
        block.lanes.masks,
        block.words,
        block.words * kPanelRows};
    counters(rows, block.lane_panels)(tile, counts);
    if (block.lane_panels == 1) {
      run_at(level, FinishTile<T, 1>{block, counts, row, rows});
    } else {
      run_at(level, FinishTile<T, 2>{block, counts, row, rows});
    }
    row += rows;
  }
}

// How many bits each of `count` rows of the panels has set.
inline void count_ones(const Counters& steps, const uint32_t* panels, int64_t count, int64_t words, int32_t* ones) {
  const Words none = new_words(words * kPanelRows);
  memset(none.get(), 0, size_t(words) * kPanelRows * sizeof(uint32_t));
  alignas(64) int32_t counts[kTileRows * kProductLanes];
  for (int64_t row = 0; row < count; row += kPanelRows) {
    const TileWords tile = {none.get(), nullptr, panels + row * words, nullptr, words, 0};
    steps(1, 1)(tile, counts);
    memcpy(ones + row, counts, size_t(std::min<int64_t>(kPanelRows, count - row)) * sizeof(int32_t));
  }
}

// About how long the tiles of `rows` by `lanes` take, for share_out.
inline double nanoseconds_of(const ChosenCapability& chosen, int64_t rows, int64_t lanes, int64_t words) {
  const double of_words = chosen.popcounts ? 0.03 : chosen.level != Capability::plain ? 0.1 : 0.4;
  return double(rows) * double(lanes) * (0.1 + of_words * double(words));
}

}  // namespace ste_ops
