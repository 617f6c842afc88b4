// Rows of weights cut into tiles, which blocks stride over.
#pragma once

#include <algorithm>

#include "core/groups.h"
#include "cuda/launch.cuh"

namespace ste_ops {

constexpr int kSamplingThreads = 256;
// Items of a row that one block takes at a time, a multiple of kSamplingThreads.
constexpr int64_t kSamplingTile = 2048;
// Most blocks of a grid; they stride over the work that is left.
constexpr int64_t kMaxBlocks = 1 << 20;

// The blocks of kSamplingThreads that the device holds at once, for kernels that stride over their work; at most the
// 65535 that the second dimension of a grid takes.
inline int64_t resident_blocks(const Launcher& launch) {
  constexpr int kThreadsOfMultiprocessor = 2048;
  return std::min<int64_t>(int64_t(launch.multiprocessors()) * (kThreadsOfMultiprocessor / kSamplingThreads), 65535);
}

// The blocks that give each item a thread, or of a grid that strides over the items.
inline int64_t grid_for(int64_t items) { return std::min(blocks_for(items, kSamplingThreads), kMaxBlocks); }

// The tiles of all rows, numbered row by row.
struct Tiles {
  int64_t rows, n, per_row;
  Tiles(int64_t rows, int64_t n) : rows(rows), n(n), per_row(blocks_for(n, kSamplingTile)) {}
  STE_HD int64_t count() const { return rows * per_row; }
  STE_HD int64_t row(int64_t tile) const { return divided(tile, per_row); }
  STE_HD int64_t offset(int64_t tile) const { return row(tile) * n; }
  STE_HD int64_t begin(int64_t tile) const { return (tile - row(tile) * per_row) * kSamplingTile; }
  STE_HD int64_t end(int64_t tile) const { return begin(tile) + kSamplingTile < n ? begin(tile) + kSamplingTile : n; }
};

// CUDA's 64-bit atomics are declared for unsigned long long.
__device__ inline unsigned long long* atomic(uint64_t& x) { return reinterpret_cast<unsigned long long*>(&x); }

struct Greater {
  STE_HD uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

}  // namespace ste_ops
