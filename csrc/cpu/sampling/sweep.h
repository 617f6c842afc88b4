// The sweep of core/sampling/alias.h over masses that stand where the table will: the entry of an item takes the place
// of its mass. Beside them the sweep needs a bit an item, which says whether it is heavy, and sums for each tile.
// Chunks of the sweep run side by side: each reads and writes only the masses of the items whose columns it completes.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/sampling/alias.h"
#include "cpu/sampling/draws.h"
#include "cpu/share.h"

namespace ste_ops {
namespace {

// What lies before a tile.
struct TileSums {
  uint64_t mass = 0, lacked = 0, exceeded = 0;
  int64_t heavies = 0;
};

// A state of the merge: columns of `lights` light and of `heavies` heavy items are complete.
struct SweepState {
  int64_t lights, heavies;
  uint64_t lacked, exceeded;  // deficit[lights], excess[heavies]
  int64_t light, heavy;       // the next light item is at or behind `light`; the next heavy one, 0 where none is left
  int64_t columns() const { return lights + heavies; }
};

// The items of one kind, in ascending order. There must be a next one.
class ItemsOfKind {
 public:
  // `flip` is all ones for the items whose bit is 0.
  ItemsOfKind(const uint64_t* bits, uint64_t flip, int64_t begin)
      : bits_(bits), flip_(flip), word_(begin / 64), left_((bits[word_] ^ flip) & ~uint64_t(0) << (begin % 64)) {}
  STE_OPS_INLINE int64_t next() {
    while (left_ == 0) left_ = bits_[++word_] ^ flip_;
    int64_t item = word_ * 64 + __builtin_ctzll(left_);
    left_ &= left_ - 1;
    return item;
  }

 private:
  const uint64_t* bits_;
  uint64_t flip_;
  int64_t word_;
  uint64_t left_;
};

class Sweep {
 public:
  // Tiles have `tile` items, a multiple of 64; behind the sums of the last tile stands one more.
  Sweep(
      uint64_t* table, int64_t n, const uint64_t* heavy_bits, const std::vector<TileSums>& sums, int64_t tile,
      uint64_t capacity)
      : table_(table), n_(n), heavy_bits_(heavy_bits), sums_(sums), tile_(tile), capacity_(capacity) {}

  // More chunks are shorter ones. Their ends are boundaries of tiles, half of them tiles of light items and half of
  // heavy ones, in the order in which the sweep meets them.
  void run(int64_t chunks) const {
    if (chunks == 1) return complete(state_at(0), state_at(2 * tiles()));
    std::vector<SweepState> states(chunks + 1);
    for (int64_t c = 0; c <= chunks; ++c) states[c] = state_at(2 * tiles() * c / chunks);
    share_out(chunks, kNanoseconds * double(n_ / chunks), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) complete(states[c], states[c + 1]);
    });
  }

 private:
  // Items of a kind that are laid out for the merge at a time, within the first-level cache.
  static constexpr int64_t kBuffer = 512;
  static constexpr double kNanoseconds = 8;  // an item
  using Merge = AliasMerge<int64_t>;

  int64_t tiles() const { return int64_t(sums_.size()) - 1; }
  uint64_t lacked_by(int64_t item) const { return capacity_ - table_[item]; }
  uint64_t exceeded_by(int64_t item) const { return table_[item] - capacity_; }

  SweepState state_at(int64_t boundaries) const {
    int64_t low = std::max(boundaries - tiles(), int64_t(0)), high = std::min(boundaries, tiles());
    while (low < high) {
      int64_t middle = low + (high - low) / 2;
      if (sums_[boundaries - 1 - middle].exceeded > sums_[middle].lacked) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    int64_t light = low, heavy = boundaries - low;
    if (heavy < tiles() && (light == tiles() || sums_[heavy].exceeded <= sums_[light].lacked)) return at_heavy(heavy);
    return at_light(light);
  }

  // When the light items before a tile, and no others, are complete.
  SweepState at_light(int64_t t) const {
    const TileSums& at = sums_[t];
    int64_t begin = std::min(t * tile_, n_);
    SweepState state{begin - at.heavies, sums_.back().heavies, at.lacked, Merge::kEnd, begin, 0};
    auto above = [](uint64_t lacked, const TileSums& tile) { return lacked < tile.exceeded; };
    const auto tile = std::upper_bound(sums_.begin(), sums_.end() - 1, at.lacked, above) - 1;
    int64_t from = (tile - sums_.begin()) * tile_, count = tile[1].heavies - tile[0].heavies;
    uint64_t exceeded = tile->exceeded;
    ItemsOfKind heavy(heavy_bits_, 0, from);
    for (int64_t k = 0; k < count; ++k) {
      int64_t item = heavy.next();
      exceeded += exceeded_by(item);
      if (exceeded <= at.lacked) continue;
      state.heavies = tile->heavies + k;
      state.exceeded = exceeded;
      state.heavy = item;
      break;
    }
    return state;
  }

  // When the heavy items before a tile, and no others, are complete.
  SweepState at_heavy(int64_t t) const {
    const TileSums& at = sums_[t];
    SweepState state{0, at.heavies, 0, Merge::kEnd, 0, 0};
    if (at.heavies < sums_.back().heavies) {
      state.heavy = ItemsOfKind(heavy_bits_, 0, t * tile_).next();
      state.exceeded = at.exceeded + exceeded_by(state.heavy);
    }
    if (at.exceeded == 0) return state;
    auto below = [](const TileSums& tile, uint64_t exceeded) { return tile.lacked < exceeded; };
    const auto tile = std::lower_bound(sums_.begin(), sums_.end() - 1, at.exceeded, below) - 1;
    int64_t from = (tile - sums_.begin()) * tile_, count = std::min(tile_, n_ - from);
    count -= tile[1].heavies - tile[0].heavies;
    state.lights = from - tile->heavies;
    state.lacked = tile->lacked;
    state.light = from;
    ItemsOfKind light(heavy_bits_, ~uint64_t(0), from);
    for (; count > 0 && state.lacked < at.exceeded; --count) {
      int64_t item = light.next();
      state.lacked += lacked_by(item);
      state.light = item + 1;
      ++state.lights;
    }
    return state;
  }

  void complete(SweepState from, const SweepState& to) const {
    // One place more than the merge counts is read, though not used.
    uint64_t deficit[kBuffer + 2], excess[kBuffer + 2];
    int64_t light[kBuffer + 1], heavy[kBuffer + 2];
    int64_t left = to.columns() - from.columns();
    if (left == 0) return;
    ItemsOfKind lights(heavy_bits_, ~uint64_t(0), std::min(from.light, n_ - 1));
    ItemsOfKind heavies(heavy_bits_, 0, from.heavy);
    if (from.heavies < to.heavies) heavies.next();
    deficit[0] = from.lacked;
    deficit[1] = 0;
    light[0] = 0;
    excess[0] = from.exceeded;
    heavy[0] = from.heavy;
    Merge merge(deficit, excess, light, heavy, 0, 0, capacity_, alias_bits(n_));
    // Items that are still to be laid out.
    int64_t lights_left = to.lights - from.lights, heavies_left = to.heavies - from.heavies;
    while (left > 0) {
      if (lights_left > 0 && merge.lights - merge.i <= kBuffer / 2) {
        int64_t kept = merge.lights - merge.i, count = std::min(lights_left, kBuffer - kept);
        std::copy(light + merge.i, light + merge.lights, light);
        std::copy(deficit + merge.i, deficit + merge.lights + 1, deficit);
        uint64_t lacked = deficit[kept];
        for (int64_t k = kept; k < kept + count; ++k) {
          light[k] = lights.next();
          lacked += lacked_by(light[k]);
          deficit[k + 1] = lacked;
        }
        merge.i = 0;
        merge.lights = kept + count;
        lights_left -= count;
        light[merge.lights] = 0;
        deficit[merge.lights + 1] = 0;
      }
      // merge.heavies counts those behind the current one.
      if (heavies_left > 0 && merge.heavies - merge.j <= kBuffer / 2) {
        int64_t kept = merge.heavies - merge.j, count = std::min(heavies_left, kBuffer - kept);
        std::copy(heavy + merge.j, heavy + merge.heavies + 1, heavy);
        std::copy(excess + merge.j, excess + merge.heavies + 1, excess);
        heavies_left -= count;
        uint64_t exceeded = excess[kept];
        // The last one belongs to the next chunk: another thread may have completed it.
        for (int64_t k = kept + 1; k <= kept + count - (heavies_left == 0); ++k) {
          heavy[k] = heavies.next();
          exceeded += exceeded_by(heavy[k]);
          excess[k] = exceeded;
        }
        merge.j = 0;
        merge.heavies = kept + count;
        if (heavies_left == 0) {
          heavy[merge.heavies] = to.heavy;
          excess[merge.heavies] = to.exceeded;
        }
      }
      int64_t safe = left;
      if (lights_left > 0) safe = std::min(safe, merge.lights - merge.i);
      if (heavies_left > 0) safe = std::min(safe, merge.heavies - merge.j);
      for (int64_t k = 0; k < safe; ++k) merge.complete_column(table_);
      left -= safe;
    }
  }

  uint64_t* table_;
  int64_t n_;
  const uint64_t* heavy_bits_;
  const std::vector<TileSums>& sums_;
  int64_t tile_;
  uint64_t capacity_;
};

}  // namespace
}  // namespace ste_ops
