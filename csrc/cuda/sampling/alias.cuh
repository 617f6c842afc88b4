// Builds alias tables: eight launches over the tiles of all rows, and nothing on the host waits for them.
#pragma once

#include <algorithm>

#include "../../alias.h"
#include "masses.cuh"

namespace ste_ops {

// Moves: reads rows * n * T + 24 * rows, writes 8 * rows * n + 8 * tiles.
template <class T>
__global__ void mass_kernel(Tiles tiles, const bits_t<T>* weights, const Row* rows, uint64_t* masses,
                            uint64_t* tile_mass) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const Row& row = rows[tiles.row(tile)];
    const bits_t<T>* w = weights + tiles.offset(tile);
    int64_t exponent = mass_exponent<T>(row, tiles.n);
    uint64_t sum = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kSamplingThreads) {
      uint64_t m = row.invalid == 0 ? mass<T>(w[i], exponent) : 0;
      masses[tiles.offset(tile) + i] = m;
      sum += m;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) tile_mass[tile] = sum;
  }
}

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

// Pads the masses in place and sums what is heavy in a tile.
// Moves: reads 8 * rows * n + 8 * tiles + 16 * rows, writes 8 * rows * n + 16 * tiles.
__global__ void pad_kernel(Tiles tiles, uint64_t* masses, const uint64_t* mass_before, const Columns* columns,
                           uint64_t* tile_excess, uint64_t* tile_heavies) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    uint64_t* m = masses + tiles.offset(tile);
    Columns column = columns[tiles.row(tile)];
    uint64_t before = mass_before[tile], excess = 0, heavies = 0;
    for (int64_t begin = tiles.begin(tile); begin < tiles.end(tile); begin += kSamplingThreads) {
      int64_t i = begin + threadIdx.x;
      uint64_t mass = i < tiles.end(tile) ? m[i] : 0, total;
      uint64_t up_to = before + block_inclusive_scan(mass, total);
      mass = padded(up_to, column.padding) - padded(up_to - mass, column.padding);
      if (i < tiles.end(tile)) m[i] = mass;
      excess += exceeds(mass, column.capacity);
      heavies += mass > column.capacity;
      before += total;
    }
    excess = block_sum(excess);
    heavies = block_sum(heavies);
    if (threadIdx.x == 0) {
      tile_excess[tile] = excess;
      tile_heavies[tile] = heavies;
    }
  }
}

// Room of a row for the arrays of AliasMerge.
STE_HD int64_t bounds_of(int64_t n) { return n + 2; }
STE_HD int64_t items_of(int64_t n) { return n + 1; }

// Puts the items where the merge finds them. An item number takes 4 bytes where that holds all of them.
// Moves: reads 8 * rows * n + 24 * tiles + 24 * rows, writes rows * (n + 2) * 8 + rows * (n + 1) * Item.
template <class Item>
__global__ void place_kernel(Tiles tiles, const uint64_t* masses, const uint64_t* mass_before,
                             const uint64_t* excess_before, const uint64_t* heavies_before, const uint64_t* row_heavies,
                             const Columns* columns, uint64_t* bounds, Item* items) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    int64_t row = tiles.row(tile), lights = tiles.n - int64_t(row_heavies[row]);
    Columns column = columns[row];
    uint64_t* bound = bounds + row * bounds_of(tiles.n);
    Item* item = items + row * items_of(tiles.n);
    uint64_t exceeded = excess_before[tile], heavies = heavies_before[tile];
    uint64_t lacked = lacked_before(tiles.begin(tile), mass_before[tile], exceeded, column);
    for (int64_t begin = tiles.begin(tile); begin < tiles.end(tile); begin += kSamplingThreads) {
      int64_t i = begin + threadIdx.x;
      uint64_t mass = i < tiles.end(tile) ? masses[tiles.offset(tile) + i] : column.capacity, total;
      uint64_t lacking = lacks(mass, column.capacity), exceeding = exceeds(mass, column.capacity);
      uint64_t lacked_here = lacked + block_inclusive_scan(lacking, total) - lacking;
      lacked += total;
      uint64_t exceeded_here = exceeded + block_inclusive_scan(exceeding, total) - exceeding;
      exceeded += total;
      uint64_t heavies_here = heavies + block_inclusive_scan(uint64_t(exceeding != 0), total) - (exceeding != 0);
      heavies += total;
      if (i < tiles.end(tile)) {
        AliasPlace place(mass, lights, i, int64_t(heavies_here), lacked_here, exceeded_here, column.capacity);
        bound[place.bound] = place.value;
        item[place.item] = Item(i);
      }
    }
    if (threadIdx.x == 0 && tiles.end(tile) == tiles.n) {
      bound[lights] = lacked;
      bound[tiles.n + 1] = AliasMerge<Item>::kEnd;
      item[tiles.n] = 0;
    }
  }
}

// Moves: reads at most rows * ((n + 2) * 8 + (n + 1) * Item + 16), writes 8 * rows * n.
template <class Item>
__global__ void merge_kernel(Tiles tiles, const uint64_t* bounds, const Item* items, const uint64_t* row_heavies,
                             const int64_t* capacity, uint64_t* table) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    int64_t row = tiles.row(tile), steps = kSamplingTile / kSamplingThreads;
    int64_t begin = tiles.begin(tile) + threadIdx.x * steps;
    int64_t end = begin + steps < tiles.end(tile) ? begin + steps : tiles.end(tile);
    if (begin >= end) continue;
    uint64_t* out = table + row * tiles.n;
    if (capacity[row] <= 0) {
      for (int64_t i = begin; i < end; ++i) out[i] = 0;
      continue;
    }
    AliasMerge<Item> merge(bounds + row * bounds_of(tiles.n), items + row * items_of(tiles.n), tiles.n,
                           int64_t(row_heavies[row]), uint64_t(capacity[row]));
    merge.seek(begin);
    for (int64_t step = begin; step < end; ++step) merge.step(out);
  }
}

// What the kernels behind the masses work on.
struct AliasScratch {
  Columns* columns;
  uint64_t *mass_before, *excess_before, *heavies_before, *row_heavies, *bounds;
};

template <class Item>
void pair_items(const Launcher& launch, const Tensor& like, Tiles tiles, ScalarType item_type, AliasScratch scratch,
                uint64_t* table, const int64_t* capacity) {
  Tensor memory = empty_vector(tiles.rows * items_of(tiles.n), item_type, like);
  Item* items = static_cast<Item*>(memory.mutable_data_ptr());
  int64_t blocks = std::min(tiles.count(), kMaxBlocks);
  launch(place_kernel<Item>, blocks, kSamplingThreads, tiles, table, scratch.mass_before, scratch.excess_before,
         scratch.heavies_before, scratch.row_heavies, scratch.columns, scratch.bounds, items);
  launch(merge_kernel<Item>, blocks, kSamplingThreads, tiles, scratch.bounds, items, scratch.row_heavies, capacity,
         table);
}

template <class T>
void build_tables(const Launcher& launch, const Tensor& like, const bits_t<T>* weights, int64_t rows, int64_t n,
                  uint64_t* table, int64_t* capacity) {
  Tiles tiles{rows, n, blocks_for(n, kSamplingTile)};
  auto allocate = [&](int64_t numel) { return empty_vector(numel, ScalarType::Long, like); };
  Tensor row_memory = torch::stable::new_zeros(like, {rows * int64_t(sizeof(Row) / 8)}, ScalarType::Long);
  Tensor column_memory = allocate(rows * int64_t(sizeof(Columns) / 8));
  Tensor row_sums = allocate(rows), tile_sums = allocate(3 * tiles.count());
  Tensor bound_memory = allocate(rows * bounds_of(n));
  Row* row = static_cast<Row*>(row_memory.mutable_data_ptr());
  Columns* columns = static_cast<Columns*>(column_memory.mutable_data_ptr());
  uint64_t* mass_before = mutable_unsigned_data(tile_sums);
  AliasScratch scratch{columns,
                       mass_before,
                       mass_before + tiles.count(),
                       mass_before + 2 * tiles.count(),
                       mutable_unsigned_data(row_sums),
                       mutable_unsigned_data(bound_memory)};
  int64_t blocks = std::min(tiles.count(), kMaxBlocks), row_blocks = std::min(rows, kMaxBlocks);
  // The masses stand in the table until its entries replace them.
  launch(inspect_kernel<T>, blocks, kSamplingThreads, tiles, weights, row);
  launch(coarse_kernel<T>, blocks, kSamplingThreads, tiles, weights, row);
  launch(mass_kernel<T>, blocks, kSamplingThreads, tiles, weights, row, table, mass_before);
  launch(scan_mass_kernel, row_blocks, kSamplingThreads, tiles, mass_before, row, columns, capacity);
  launch(pad_kernel, blocks, kSamplingThreads, tiles, table, mass_before, columns, scratch.excess_before,
         scratch.heavies_before);
  launch(scan_heavy_kernel, row_blocks, kSamplingThreads, tiles, scratch.excess_before, scratch.heavies_before,
         scratch.row_heavies);
  if (n <= int64_t(UINT32_MAX)) {
    pair_items<uint32_t>(launch, like, tiles, ScalarType::Int, scratch, table, capacity);
  } else {
    pair_items<int64_t>(launch, like, tiles, ScalarType::Long, scratch, table, capacity);
  }
}

}  // namespace ste_ops
