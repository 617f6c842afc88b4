// Builds alias tables: eight launches over the tiles of all rows, and nothing on the host waits for them.
#pragma once

#include <algorithm>

#include "cuda/sampling/masses.cuh"
#include "ops/sampling/alias.h"

namespace ste_ops {

// Moves: reads 8 * tiles + 16 * rows, writes 8 * tiles + 32 * rows.
__global__ void scan_mass_kernel(Tiles tiles, uint64_t* tile_mass, Row* rows, Columns* columns, int64_t* capacity) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    uint64_t total = scan_row(tile_mass + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x != 0) continue;
    rows[row].total = total;
    columns[row] = columns_of(total, tiles.n);
    capacity[row] = capacity_of(rows[row], tiles.n);
  }
}

// Moves: reads 16 * tiles, writes 16 * tiles + 8 * rows.
__global__ void scan_heavy_kernel(Tiles tiles, uint64_t* tile_excess, uint64_t* tile_heavies, uint64_t* row_heavies) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    scan_row(tile_excess + row * tiles.per_row, tiles.per_row);
    uint64_t heavies = scan_row(tile_heavies + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x == 0) row_heavies[row] = heavies;
  }
}

// Pads the masses of tile_item(begin, k) to what the columns hold, and finds the mass before each.
__device__ inline void pad_masses(
    uint64_t (&masses)[kTileItems], uint64_t mass_before, Columns column, uint64_t (&before)[kTileItems]) {
  TileSums<uint64_t> sums(sum_of(masses), mass_before);
#pragma unroll
  for (int k = 0; k < kTileItems; ++k) {
    before[k] = sums.next(masses[k]);
    masses[k] = padded(before[k] + masses[k], column.padding) - padded(before[k], column.padding);
  }
}

// The heavy ones among some masses: what they exceed the capacity by in all, and how many they are. An item without a
// mass is light.
struct HeavySums {
  uint64_t excess = 0, heavies = 0;
};

// The padded masses of this thread's items of a tile and the masses before each; returns the sums of the heavy ones.
template <class T>
__device__ HeavySums padded_tile(
    const Tiles& tiles, int64_t tile, const bits_t<T>* weights, const Row& row, uint64_t mass_before, Columns column,
    uint64_t (&masses)[kTileItems], uint64_t (&before)[kTileItems]) {
  tile_masses<T>(tiles, tile, weights, row, masses);
  pad_masses(masses, mass_before, column, before);
  HeavySums sums;
#pragma unroll
  for (int k = 0; k < kTileItems; ++k) {
    sums.excess += exceeds(masses[k], column.capacity);
    sums.heavies += masses[k] > column.capacity;
  }
  return sums;
}

// The sums of the heavy items of each tile.
// Moves: reads rows * n * T + 8 * tiles + 24 * rows, writes 16 * tiles.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads) pad_kernel(
    Tiles tiles, const bits_t<T>* weights, const Row* rows, const uint64_t* mass_before, const Columns* columns,
    uint64_t* tile_excess, uint64_t* tile_heavies) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t row = tiles.row(tile);
    uint64_t masses[kTileItems], before[kTileItems];
    const HeavySums sums =
        padded_tile<T>(tiles, tile, weights, rows[row], mass_before[tile], columns[row], masses, before);
    const uint64_t excess = block_sum(sums.excess), heavies = block_sum(sums.heavies);
    if (threadIdx.x == 0) {
      tile_excess[tile] = excess;
      tile_heavies[tile] = heavies;
    }
  }
}

// The room that a row has for the arrays of AliasMerge.
STE_HD int64_t bounds_of(int64_t n) { return n + 2; }
STE_HD int64_t items_of(int64_t n) { return n + 1; }

// Puts the items where the merge finds them. An item number takes 4 bytes where these hold all numbers.
// Moves: reads rows * n * T + 24 * tiles + 48 * rows, writes rows * ((n + 2) * 8 + (n + 1) * Item).
template <class T, class Item>
__global__ void __launch_bounds__(kSamplingThreads) place_kernel(
    Tiles tiles, const bits_t<T>* weights, const Row* rows, const uint64_t* mass_before, const uint64_t* excess_before,
    const uint64_t* heavies_before, const uint64_t* row_heavies, const Columns* columns, uint64_t* bounds,
    Item* items) {
  // A thread's own masses, and what is before each: in registers they would leave a multiprocessor few warps.
  __shared__ uint64_t kept_masses[kTileItems][kSamplingThreads], kept_before[kTileItems][kSamplingThreads];
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t row = tiles.row(tile), lights = tiles.n - int64_t(row_heavies[row]);
    const int64_t begin = tiles.begin(tile), end = tiles.end(tile);
    const Columns column = columns[row];
    uint64_t* bound = bounds + row * bounds_of(tiles.n);
    Item* item = items + row * items_of(tiles.n);
    uint64_t masses[kTileItems], before[kTileItems];
    const HeavySums sums = padded_tile<T>(tiles, tile, weights, rows[row], mass_before[tile], column, masses, before);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      kept_masses[k][threadIdx.x] = masses[k];
      kept_before[k][threadIdx.x] = before[k];
    }
    TileSums<uint64_t> excess_sums(sums.excess, excess_before[tile]), heavy_sums(sums.heavies, heavies_before[tile]);
#pragma unroll 1
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(begin, k);
      const uint64_t mass = kept_masses[k][threadIdx.x];
      const uint64_t exceeded = excess_sums.next(exceeds(mass, column.capacity));
      const uint64_t heavies_here = heavy_sums.next(mass > column.capacity);
      if (i >= end) continue;
      const uint64_t lacked = lacked_before(i, kept_before[k][threadIdx.x], exceeded, column);
      const AliasPlace place(mass, lights, i, int64_t(heavies_here), lacked, exceeded, column.capacity);
      bound[place.bound] = place.value;
      item[place.item] = Item(i);
      if (i + 1 == tiles.n) {
        bound[lights] = lacked + lacks(mass, column.capacity);
        bound[tiles.n + 1] = AliasMerge<Item>::kEnd;
        item[tiles.n] = 0;
      }
    }
  }
}

// Completes the columns of a tile; a thread completes kTileItems neighbours of the merge. Where the tile begins and
// ends is searched for in the whole row once for all threads, which then search what lies between.
// Moves: reads at most rows * ((n + 2) * 8 + (n + 1) * Item + 16), writes 8 * rows * n.
template <class Item>
__global__ void __launch_bounds__(kSamplingThreads) merge_kernel(
    Tiles tiles, const uint64_t* bounds, const Item* items, const uint64_t* row_heavies, const int64_t* capacity,
    uint64_t* table) {
  __shared__ int64_t lights_at[2];
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t row = tiles.row(tile), first = tiles.begin(tile), last = tiles.end(tile);
    const int64_t begin = first + int64_t(threadIdx.x) * kTileItems;
    const int64_t end = begin + kTileItems < last ? begin + kTileItems : last;
    uint64_t* out = table + row * tiles.n;
    if (capacity[row] <= 0) {
      for (int64_t i = begin; i < end; ++i) out[i] = 0;
      continue;
    }
    AliasMerge<Item> merge(
        bounds + row * bounds_of(tiles.n), items + row * items_of(tiles.n), tiles.n, int64_t(row_heavies[row]),
        uint64_t(capacity[row]));
    if (lane_index() == 0 && warp_index() < 2) {
      merge.seek(warp_index() == 0 ? first : last);
      lights_at[warp_index()] = merge.i;
    }
    __syncthreads();
    const int64_t low = lights_at[0], high = lights_at[1];
    __syncthreads();  // free for the next tile
    if (begin >= end) continue;
    const int64_t at_least = high - (last - begin), at_most = low + (begin - first);
    merge.seek(begin, at_least > low ? at_least : low, at_most < high ? at_most : high);
    for (int64_t done = begin; done < end; ++done) merge.complete_column(out);
  }
}

// What the kernels behind the masses work on.
struct AliasScratch {
  Columns* columns;
  uint64_t *mass_before, *excess_before, *heavies_before, *row_heavies, *bounds;
};

template <class T, class Item>
void pair_items(
    const Launcher& launch, const Tensor& like, Tiles tiles, ScalarType item_type, const bits_t<T>* weights,
    const Row* rows, AliasScratch scratch, uint64_t* table, const int64_t* capacity) {
  Tensor memory = empty_vector(tiles.rows * items_of(tiles.n), item_type, like);
  Item* items = static_cast<Item*>(memory.mutable_data_ptr());
  const int64_t blocks = std::min(tiles.count(), resident_blocks(launch));
  launch(
      place_kernel<T, Item>, blocks, kSamplingThreads, tiles, weights, rows, scratch.mass_before, scratch.excess_before,
      scratch.heavies_before, scratch.row_heavies, scratch.columns, scratch.bounds, items);
  launch(
      merge_kernel<Item>, blocks, kSamplingThreads, tiles, scratch.bounds, items, scratch.row_heavies, capacity, table);
}

template <class T>
void build_tables(const Launcher& launch, const AliasTables& call) {
  const int64_t rows = call.weights.rows, n = call.weights.n;
  const Tensor& like = call.weights.dense;
  const Tiles tiles(rows, n);
  auto allocate = [&](int64_t numel) { return empty_vector(numel, ScalarType::Long, like); };
  Tensor row_memory = zero_rows(like, rows), column_memory = allocate(rows * int64_t(sizeof(Columns) / 8));
  Tensor row_sums = allocate(rows), tile_sums = allocate(3 * tiles.count());
  Tensor bound_memory = allocate(rows * bounds_of(n));
  const bits_t<T>* weights = call.weights.bits<T>();
  uint64_t* table = mutable_unsigned_data(call.table);
  int64_t* capacity = mutable_typed_data<int64_t>(call.capacity);
  Row* row = mutable_typed_data<Row>(row_memory);
  Columns* columns = mutable_typed_data<Columns>(column_memory);
  uint64_t* mass_before = mutable_unsigned_data(tile_sums);
  const AliasScratch scratch{
      columns,
      mass_before,
      mass_before + tiles.count(),
      mass_before + 2 * tiles.count(),
      mutable_unsigned_data(row_sums),
      mutable_unsigned_data(bound_memory)};
  const int64_t most = resident_blocks(launch), blocks = std::min(tiles.count(), most);
  measure_tiles<T>(launch, tiles, weights, row, mass_before);
  launch(scan_mass_kernel, std::min(rows, most), kSamplingThreads, tiles, mass_before, row, columns, capacity);
  launch(
      pad_kernel<T>, blocks, kSamplingThreads, tiles, weights, row, mass_before, columns, scratch.excess_before,
      scratch.heavies_before);
  launch(
      scan_heavy_kernel, std::min(rows, most), kSamplingThreads, tiles, scratch.excess_before, scratch.heavies_before,
      scratch.row_heavies);
  if (n <= int64_t(UINT32_MAX)) {
    pair_items<T, uint32_t>(launch, like, tiles, ScalarType::Int, weights, row, scratch, table, capacity);
  } else {
    pair_items<T, int64_t>(launch, like, tiles, ScalarType::Long, weights, row, scratch, table, capacity);
  }
}

}  // namespace ste_ops
