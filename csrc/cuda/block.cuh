// Sums and scans over a warp or a block in a fixed order, so that equal inputs give equal bits. Every thread of the
// warp or block must take part, and every thread gets the result.
#pragma once

#ifdef STE_OPS_EMULATED
#include "cuda_emulator.h"
#endif

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace ste_ops {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline int lane_index() { return int(threadIdx.x) % kWarpSize; }
__device__ inline int warp_index() { return int(threadIdx.x) / kWarpSize; }
__device__ inline int warp_count() { return int(blockDim.x) / kWarpSize; }

// This thread's place in the grid, and the grid's size, for loops that stride over more work than threads.
__device__ inline int64_t grid_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t grid_stride() { return int64_t(gridDim.x) * blockDim.x; }

// The launch's dynamic shared memory, at least 16-byte aligned.
template <class T>
__device__ T* dynamic_shared() {
#ifdef STE_OPS_EMULATED
  return static_cast<T*>(emulator::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

// CUDA shuffles numbers of 4 and 8 bytes; these shuffle any struct made of 4-byte words.
template <class T, class Shuffle>
__device__ T shuffle_words(T value, Shuffle shuffle) {
  static_assert(sizeof(T) % 4 == 0, "only whole words can be shuffled");
  unsigned words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
  for (unsigned& word : words) word = shuffle(word);
  memcpy(&value, words, sizeof(T));
  return value;
}

struct ShuffleFrom {
  int lane;
  __device__ unsigned operator()(unsigned word) const { return __shfl_sync(kFullWarp, word, lane); }
};
struct ShuffleXor {
  int lanes;
  __device__ unsigned operator()(unsigned word) const { return __shfl_xor_sync(kFullWarp, word, lanes); }
};
struct ShuffleUp {
  unsigned delta;
  __device__ unsigned operator()(unsigned word) const { return __shfl_up_sync(kFullWarp, word, delta); }
};

template <class T>
__device__ T shuffle_from(T value, int lane) {
  return shuffle_words(value, ShuffleFrom{lane});
}
template <class T>
__device__ T shuffle_xor(T value, int lanes) {
  return shuffle_words(value, ShuffleXor{lanes});
}
template <class T>
__device__ T shuffle_up(T value, unsigned delta) {
  return shuffle_words(value, ShuffleUp{delta});
}

struct Add {
  template <class T>
  STE_HD T operator()(T a, T b) const {
    return a + b;
  }
};

// `combine` must be commutative to the bit, which lets all lanes run the same tree; it need not be associative.
template <class T, class Combine>
__device__ T warp_reduce(T value, Combine combine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
  return value;
}

template <class T, class Combine>
__device__ T block_reduce(T value, Combine combine, T identity) {
  __shared__ T of_warp[kMaxWarps];
  value = warp_reduce(value, combine);
  if (lane_index() == 0) of_warp[warp_index()] = value;
  __syncthreads();
  value = lane_index() < warp_count() ? of_warp[lane_index()] : identity;
  __syncthreads();  // the array is free for the next call
  return warp_reduce(value, combine);
}

template <class T>
__device__ T warp_sum(T value) {
  return warp_reduce(value, Add());
}
template <class T>
__device__ T block_sum(T value) {
  return block_reduce(value, Add(), T(0));
}

// Sum of the values of the lanes up to and including this one.
template <class T>
__device__ T warp_inclusive_scan(T value) {
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    T before = shuffle_up(value, unsigned(delta));
    if (lane_index() >= delta) value = before + value;
  }
  return value;
}

// Sum of the values of the threads up to and including this one; `total` gets the block's sum.
template <class T>
__device__ T block_inclusive_scan(T value, T& total) {
  __shared__ T of_warp[kMaxWarps];
  value = warp_inclusive_scan(value);
  if (lane_index() == kWarpSize - 1) of_warp[warp_index()] = value;
  __syncthreads();
  T up_to_warp = warp_inclusive_scan(lane_index() < warp_count() ? of_warp[lane_index()] : T(0));
  __syncthreads();  // the array is free for the next call
  total = shuffle_from(up_to_warp, kWarpSize - 1);
  T before = shuffle_from(up_to_warp, warp_index() == 0 ? 0 : warp_index() - 1);
  return warp_index() == 0 ? value : before + value;
}

}  // namespace ste_ops
