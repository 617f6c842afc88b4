// Builds alias tables: eight launches over the tiles of all rows, and nothing on the host waits for them.
#pragma once

#include <algorithm>

#include "../sampling.h"
#include "launch.cuh"

namespace ste_ops {

constexpr int kAliasThreads = 256;
// Items of a row that one block takes at a time, a multiple of kAliasThreads.
constexpr int64_t kAliasTile = 2048;
// Blocks stride over what a grid of this size leaves.
constexpr int64_t kMaxBlocks = 1 << 20;

// The tiles of all rows, by number.
struct Tiles {
  int64_t rows, n, per_row;
  STE_HD int64_t count() const { return rows * per_row; }
  STE_HD int64_t row(int64_t tile) const { return tile / per_row; }
  STE_HD int64_t offset(int64_t tile) const { return row(tile) * n; }
  STE_HD int64_t begin(int64_t tile) const { return tile % per_row * kAliasTile; }
  STE_HD int64_t end(int64_t tile) const { return begin(tile) + kAliasTile < n ? begin(tile) + kAliasTile : n; }
};

// CUDA's 64-bit atomics are declared for unsigned long long.
__device__ inline unsigned long long* atomic(uint64_t& x) { return reinterpret_cast<unsigned long long*>(&x); }

struct Greater {
  STE_HD uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

template <class T>
__global__ void inspect_kernel(Tiles tiles, const bits_t<T>* weights, Row* rows) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const bits_t<T>* w = weights + tiles.offset(tile);
    uint64_t largest = 0, invalid = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kAliasThreads) {
      largest = Greater()(largest, magnitude<T>(w[i]));
      if (!is_weight<T>(w[i])) invalid = Greater()(invalid, uint64_t(tiles.n - i));
    }
    largest = block_reduce(largest, Greater(), uint64_t(0));
    invalid = block_reduce(invalid, Greater(), uint64_t(0));
    if (threadIdx.x == 0) {
      Row& row = rows[tiles.row(tile)];
      atomicMax(atomic(row.largest), static_cast<unsigned long long>(largest));
      if (invalid != 0) atomicMax(atomic(row.invalid), static_cast<unsigned long long>(invalid));
    }
  }
}

template <class T>
__global__ void coarse_kernel(Tiles tiles, const bits_t<T>* weights, Row* rows) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    Row& row = rows[tiles.row(tile)];
    if (row.invalid != 0) continue;
    const bits_t<T>* w = weights + tiles.offset(tile);
    int64_t exponent = coarse_exponent<T>(row.largest, tiles.n);
    uint64_t sum = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kAliasThreads) {
      sum += coarse_mass<T>(w[i], exponent);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) atomicAdd(atomic(row.coarse_total), static_cast<unsigned long long>(sum));
  }
}

template <class T>
__global__ void mass_kernel(Tiles tiles, const bits_t<T>* weights, const Row* rows, uint64_t* masses,
                            uint64_t* tile_mass) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const Row& row = rows[tiles.row(tile)];
    const bits_t<T>* w = weights + tiles.offset(tile);
    int64_t exponent = mass_exponent<T>(row, tiles.n);
    uint64_t sum = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kAliasThreads) {
      uint64_t m = row.invalid == 0 ? mass<T>(w[i], exponent) : 0;
      masses[tiles.offset(tile) + i] = m;
      sum += m;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) tile_mass[tile] = sum;
  }
}

// Turns one row's sums of tiles into the sums before each tile, a block to a row; returns the row's sum.
__device__ inline uint64_t scan_row(uint64_t* sums, int64_t count) {
  uint64_t before = 0;
  for (int64_t begin = 0; begin < count; begin += kAliasThreads) {
    int64_t i = begin + threadIdx.x;
    uint64_t sum = i < count ? sums[i] : 0, total;
    uint64_t up_to = before + block_inclusive_scan(sum, total);
    if (i < count) sums[i] = up_to - sum;
    before += total;
  }
  return before;
}

__global__ void scan_mass_kernel(Tiles tiles, uint64_t* tile_mass, Row* rows, Columns* columns, int64_t* capacity) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    uint64_t total = scan_row(tile_mass + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x != 0) continue;
    rows[row].total = total;
    columns[row] = columns_of(total, tiles.n);
    capacity[row] = capacity_of(rows[row], tiles.n);
  }
}

__global__ void scan_excess_kernel(Tiles tiles, uint64_t* tile_excess) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    scan_row(tile_excess + row * tiles.per_row, tiles.per_row);
  }
}

// Pads the masses in place and sums what they exceed the capacity by.
__global__ void pad_kernel(Tiles tiles, uint64_t* masses, const uint64_t* mass_before, const Columns* columns,
                           uint64_t* tile_excess) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    uint64_t* m = masses + tiles.offset(tile);
    Columns column = columns[tiles.row(tile)];
    uint64_t before = mass_before[tile], excess = 0;
    for (int64_t begin = tiles.begin(tile); begin < tiles.end(tile); begin += kAliasThreads) {
      int64_t i = begin + threadIdx.x;
      uint64_t mass = i < tiles.end(tile) ? m[i] : 0, total;
      uint64_t up_to = before + block_inclusive_scan(mass, total);
      mass = padded(up_to, column.padding) - padded(up_to - mass, column.padding);
      if (i < tiles.end(tile)) m[i] = mass;
      excess += exceeds(mass, column.capacity);
      before += total;
    }
    excess = block_sum(excess);
    if (threadIdx.x == 0) tile_excess[tile] = excess;
  }
}

// From padded masses to the prefix sums of what each item lacks and exceeds; the masses stand where the deficits go.
__global__ void deficit_kernel(Tiles tiles, uint64_t* deficit, uint64_t* excess, const uint64_t* mass_before,
                               const uint64_t* excess_before, const Columns* columns) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    int64_t offset = tiles.offset(tile);
    Columns column = columns[tiles.row(tile)];
    uint64_t exceeded = excess_before[tile];
    uint64_t lacked = lacked_before(tiles.begin(tile), mass_before[tile], exceeded, column);
    for (int64_t begin = tiles.begin(tile); begin < tiles.end(tile); begin += kAliasThreads) {
      int64_t i = begin + threadIdx.x;
      uint64_t mass = i < tiles.end(tile) ? deficit[offset + i] : column.capacity, total;
      uint64_t lacked_here = lacked + block_inclusive_scan(lacks(mass, column.capacity), total);
      lacked += total;
      uint64_t exceeded_here = exceeded + block_inclusive_scan(exceeds(mass, column.capacity), total);
      exceeded += total;
      if (i < tiles.end(tile)) {
        deficit[offset + i] = lacked_here;
        excess[offset + i] = exceeded_here;
      }
    }
  }
}

__global__ void match_kernel(Tiles tiles, const uint64_t* deficit, const uint64_t* excess, const int64_t* capacity,
                             uint64_t* table) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    int64_t row = tiles.row(tile), offset = tiles.offset(tile);
    AliasColumns<Bisection> column(deficit + offset, excess + offset, uint64_t(capacity[row]), tiles.n);
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kAliasThreads) {
      table[offset + i] = capacity[row] > 0 ? column.entry(i) : 0;
    }
  }
}

template <class T>
void build_alias(const Launcher& launch, const Tensor& like, const bits_t<T>* weights, int64_t rows, int64_t n,
                 uint64_t* deficit, uint64_t* excess, uint64_t* table, int64_t* capacity) {
  Tiles tiles{rows, n, blocks_for(n, kAliasTile)};
  Tensor row_memory = torch::stable::new_zeros(like, {rows * int64_t(sizeof(Row) / 8)}, ScalarType::Long);
  Tensor column_memory = empty_vector(rows * int64_t(sizeof(Columns) / 8), ScalarType::Long, like);
  Tensor mass_memory = empty_vector(tiles.count(), ScalarType::Long, like);
  Tensor excess_memory = empty_vector(tiles.count(), ScalarType::Long, like);
  Row* row = static_cast<Row*>(row_memory.mutable_data_ptr());
  Columns* columns = static_cast<Columns*>(column_memory.mutable_data_ptr());
  uint64_t *mass_before = mutable_unsigned_data(mass_memory), *excess_before = mutable_unsigned_data(excess_memory);
  int64_t blocks = std::min(tiles.count(), kMaxBlocks), row_blocks = std::min(rows, kMaxBlocks);
  launch(inspect_kernel<T>, blocks, kAliasThreads, tiles, weights, row);
  launch(coarse_kernel<T>, blocks, kAliasThreads, tiles, weights, row);
  launch(mass_kernel<T>, blocks, kAliasThreads, tiles, weights, row, deficit, mass_before);
  launch(scan_mass_kernel, row_blocks, kAliasThreads, tiles, mass_before, row, columns, capacity);
  launch(pad_kernel, blocks, kAliasThreads, tiles, deficit, mass_before, columns, excess_before);
  launch(scan_excess_kernel, row_blocks, kAliasThreads, tiles, excess_before);
  launch(deficit_kernel, blocks, kAliasThreads, tiles, deficit, excess, mass_before, excess_before, columns);
  launch(match_kernel, blocks, kAliasThreads, tiles, deficit, excess, capacity, table);
}

}  // namespace ste_ops
