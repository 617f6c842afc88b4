// The integer masses of rows of weights, in tiles that blocks stride over.
#pragma once

#include "../../core/alias.h"
#include "tiles.cuh"

namespace ste_ops {

// Moves: reads rows * n * T + 8 * rows, writes 8 * rows.
template <class T>
__global__ void inspect_kernel(Tiles tiles, const bits_t<T>* weights, Row* rows) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const bits_t<T>* w = weights + tiles.offset(tile);
    uint64_t largest = 0, invalid = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kSamplingThreads) {
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

// Moves: reads rows * n * T + 24 * rows, writes 8 * rows.
template <class T>
__global__ void coarse_kernel(Tiles tiles, const bits_t<T>* weights, Row* rows) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    Row& row = rows[tiles.row(tile)];
    if (row.invalid != 0) continue;
    const bits_t<T>* w = weights + tiles.offset(tile);
    int64_t exponent = coarse_exponent<T>(row.largest, tiles.n);
    uint64_t sum = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kSamplingThreads) {
      sum += coarse_mass<T>(w[i], exponent);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) atomicAdd(atomic(row.coarse_total), static_cast<unsigned long long>(sum));
  }
}

// Turns one row's sums of tiles into the sums before each tile, a block to a row; returns the row's sum.
__device__ inline uint64_t scan_row(uint64_t* sums, int64_t count) {
  uint64_t before = 0;
  for (int64_t begin = 0; begin < count; begin += kSamplingThreads) {
    int64_t i = begin + threadIdx.x;
    uint64_t sum = i < count ? sums[i] : 0, total;
    uint64_t up_to = before + block_inclusive_scan(sum, total);
    if (i < count) sums[i] = up_to - sum;
    before += total;
  }
  return before;
}

}  // namespace ste_ops
