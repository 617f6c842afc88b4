// The integer masses of rows of weights, in tiles that blocks stride over.
#pragma once

#include "core/sampling/alias.h"
#include "cuda/sampling/tiles.cuh"
#include "cuda/vector.cuh"
#include "ops/dispatch.h"

namespace ste_ops {

// A thread's share of a tile.
constexpr int kTileItems = int(kSamplingTile / kSamplingThreads);

// A tile in vectors of 16 bytes, in no order: all loads of a thread are under way before it uses the first. Past the
// end of the row stand zeros, which are weights without a mass.
template <class B>
struct TileVectors {
  static constexpr int kSize = Vector<B>::size, kVectors = kTileItems / kSize;
  Vector<B> vectors[kVectors];
  int64_t first;

  __device__ TileVectors(const B* row, int64_t begin, int64_t end) : first(begin + int64_t(threadIdx.x) * kSize) {
    const bool aligned = aligned16(row + begin);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) vectors[k] = read_vector(row, first + k * kStride, end, aligned);
  }

  // f(item of the row, weight)
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) f(first + k * kStride + i, vectors[k].value[i]);
    }
  }

 private:
  static constexpr int64_t kStride = int64_t(kSamplingThreads) * kSize;
};

// A tile in the order that its prefix sums need: a warp has neighbouring items, a lane has every 32nd of them.
__device__ inline int64_t tile_item(int64_t begin, int k) {
  return begin + (warp_index() * kTileItems + k) * kWarpSize + lane_index();
}

// The sums of the values before each tile_item(begin, k), from the sum of this thread's and from `start`. A lane gets
// them one after the other: all at once they would take registers that other warps need.
template <class V>
struct TileSums {
  V before, total;

  __device__ TileSums(V of_thread, V start) : before(start), total(0) {
    constexpr int kWarps = kSamplingThreads / kWarpSize;
    __shared__ V of_warp[kWarps];
    of_thread = warp_sum(of_thread);
    if (lane_index() == 0) of_warp[warp_index()] = of_thread;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp_index()) before += total;
      total += of_warp[w];
    }
    __syncthreads();  // the array is free for the next sums
  }

  // The sum before the next value; every lane must take part.
  __device__ V next(V value) {
    const V up_to = warp_inclusive_scan(value), here = before + up_to - value;
    before += shuffle_from(up_to, kWarpSize - 1);
    return here;
  }
};

template <class V>
__device__ V sum_of(const V (&values)[kTileItems]) {
  V sum = 0;
#pragma unroll
  for (int k = 0; k < kTileItems; ++k) sum += values[k];
  return sum;
}

// A block turns the sums that the tiles of one row have into the sums before each; returns the row's sum.
__device__ inline uint64_t scan_row(uint64_t* sums, int64_t count) {
  uint64_t before = 0;
  for (int64_t begin = 0; begin < count; begin += kSamplingTile) {
    uint64_t values[kTileItems];
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(begin, k);
      values[k] = i < count ? sums[i] : 0;
    }
    TileSums<uint64_t> before_each(sum_of(values), before);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(begin, k);
      const uint64_t sum = before_each.next(values[k]);
      if (i < count) sums[i] = sum;
    }
    before += before_each.total;
  }
  return before;
}

// Moves: reads rows * n * T + 8 * rows, writes 8 * rows.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads) inspect_kernel(Tiles tiles, const bits_t<T>* weights, Row* rows) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const TileVectors<bits_t<T>> items(weights + tiles.offset(tile), tiles.begin(tile), tiles.end(tile));
    uint64_t largest = 0, invalid = 0;
    items.each([&](int64_t i, bits_t<T> weight) {
      largest = Greater()(largest, magnitude<T>(weight));
      if (!is_weight<T>(weight)) invalid = Greater()(invalid, uint64_t(tiles.n - i));
    });
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
__global__ void __launch_bounds__(kSamplingThreads) coarse_kernel(Tiles tiles, const bits_t<T>* weights, Row* rows) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    Row& row = rows[tiles.row(tile)];
    if (row.invalid != 0) continue;
    const TileVectors<bits_t<T>> items(weights + tiles.offset(tile), tiles.begin(tile), tiles.end(tile));
    const int64_t exponent = coarse_exponent<T>(row.largest, tiles.n);
    uint64_t sum = 0;
    items.each([&](int64_t, bits_t<T> weight) { sum += coarse_mass<T>(weight, exponent); });
    sum = block_sum(sum);
    if (threadIdx.x == 0) atomicAdd(atomic(row.coarse_total), static_cast<unsigned long long>(sum));
  }
}

// The mass of every tile; 0 in a row with an invalid weight.
// Moves: reads rows * n * T + 24 * rows, writes 8 * tiles.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads)
    tile_mass_kernel(Tiles tiles, const bits_t<T>* weights, const Row* rows, uint64_t* tile_mass) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const Row& row = rows[tiles.row(tile)];
    uint64_t sum = 0;
    if (row.invalid == 0) {
      const TileVectors<bits_t<T>> items(weights + tiles.offset(tile), tiles.begin(tile), tiles.end(tile));
      const int64_t exponent = mass_exponent<T>(row, tiles.n);
      items.each([&](int64_t, bits_t<T> weight) { sum += mass<T>(weight, exponent); });
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) tile_mass[tile] = sum;
  }
}

// The masses of tile_item(begin, k), made again wherever they are needed: to read them, and to have written them, would
// move 16 bytes an item where the weight has 8 at most.
template <class T>
__device__ void tile_masses(
    const Tiles& tiles, int64_t tile, const bits_t<T>* weights, const Row& row, uint64_t (&masses)[kTileItems]) {
  const bits_t<T>* w = weights + tiles.offset(tile);
  const int64_t begin = tiles.begin(tile), end = row.invalid == 0 ? tiles.end(tile) : begin;
  bits_t<T> weight[kTileItems];
#pragma unroll
  for (int k = 0; k < kTileItems; ++k) {
    const int64_t i = tile_item(begin, k);
    weight[k] = i < end ? w[i] : bits_t<T>(0);
  }
  const int64_t exponent = mass_exponent<T>(row, tiles.n);
#pragma unroll
  for (int k = 0; k < kTileItems; ++k) masses[k] = mass<T>(weight[k], exponent);
}

// What is known of rows before any weight is read.
inline Tensor zero_rows(const Tensor& like, int64_t rows) {
  return torch::stable::new_zeros(like, {rows * int64_t(sizeof(Row) / 8)}, ScalarType::Long);
}

// All of the rows but their totals, and the mass of every tile.
template <class T>
void measure_tiles(
    const Launcher& launch, const Tiles& tiles, const bits_t<T>* weights, Row* rows, uint64_t* tile_mass) {
  const int64_t blocks = std::min(tiles.count(), resident_blocks(launch));
  launch(inspect_kernel<T>, blocks, kSamplingThreads, tiles, weights, rows);
  launch(coarse_kernel<T>, blocks, kSamplingThreads, tiles, weights, rows);
  launch(tile_mass_kernel<T>, blocks, kSamplingThreads, tiles, weights, rows, tile_mass);
}

}  // namespace ste_ops
