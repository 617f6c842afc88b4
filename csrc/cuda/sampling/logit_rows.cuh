// Rows of logits on the device. A team works on a row: as many lanes of a warp as it has elements, a warp, or, above
// kRowTile elements, a block. Its sums are those of csrc/core/sampling/logit_rows.h.
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"
#include "ops/sampling/categorical.h"

namespace ste_ops {

constexpr int kRowThreads = kRowStreams * kWarpSize;
static_assert(kRowLanes == kWarpSize, "a lane of the sum is a lane of a warp");

// Part of a warp; a row is one tile. Teams of one warp stay together: a team without a row has a row of length 0.
struct LaneTeam {
  int width;

  STE_HD int per_block() const { return kRowThreads / width; }
  __device__ int slot() const { return int(threadIdx.x) / width; }
  __device__ bool leads() const { return int(threadIdx.x) % width == 0; }
  __device__ void sync() const { __syncwarp(); }

  template <class F>
  __device__ void each(int64_t n, F f) const {
    for (int64_t i = int(threadIdx.x) % width; i < n; i += width) f(i);
  }
  template <class V, class Combine>
  __device__ V reduce(V value, Combine combine, V) const {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
    return value;
  }
  // The sum of f(i) over the row.
  template <class V, class F>
  __device__ V sum(int64_t n, V zero, F f) const {
    V total = zero;
    each(n, [&](int64_t i) { total = total + f(i); });
    return reduce(total, Add(), zero);
  }
};

// A block; its warps are the streams.
struct BlockTeam {
  STE_HD int per_block() const { return 1; }
  __device__ int slot() const { return 0; }
  __device__ bool leads() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncthreads(); }

  template <class F>
  __device__ void each(int64_t n, F f) const {
    for (int64_t i = threadIdx.x; i < n; i += kRowThreads) f(i);
  }
  template <class V, class Combine>
  __device__ V reduce(V value, Combine combine, V identity) const {
    return block_reduce(value, combine, identity);
  }
  template <class V, class F>
  __device__ V sum(int64_t n, V zero, F f) const {
    V stream = zero;
    for (int64_t tile = warp_index() * kRowTile; tile < n; tile += kRowStreams * kRowTile) {
      V lane = zero;
      for (int64_t i = tile + lane_index(); i < tile + kRowTile && i < n; i += kWarpSize) lane = lane + f(i);
      stream = stream + warp_reduce(lane, Add());
    }
    __shared__ V of_warp[kRowStreams];
    if (lane_index() == 0) of_warp[warp_index()] = stream;
    __syncthreads();
    V total = lane_index() < kRowStreams ? of_warp[lane_index()] : zero;
    __syncthreads();  // the array is free for the next call
    return warp_reduce(total, Add());
  }
};

// Calls f(team, blocks) with as many blocks as give every row a team of its own.
template <class F>
void with_team(const RowShape& shape, F f) {
  if (shape.n > kRowTile) return f(BlockTeam{}, shape.rows);
  int width = 1;
  while (width < kWarpSize && width < shape.n) width *= 2;
  const LaneTeam team{width};
  f(team, blocks_for(shape.rows, team.per_block()));
}

constexpr int64_t kMaxRowBlocks = 1 << 20;

template <class Team, class T>
__device__ arithmetic_t<T> largest_logit(const Team& team, const T* x, int64_t n) {
  using A = arithmetic_t<T>;
  A largest = -Floating<A>::infinity;
  team.each(n, [&](int64_t i) { largest = MaxOrNaN()(largest, load(x[i])); });
  return team.reduce(largest, MaxOrNaN(), -Floating<A>::infinity);
}

}  // namespace ste_ops
