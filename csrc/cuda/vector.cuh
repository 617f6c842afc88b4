// 128-bit accesses for the element-wise kernels. A warp works on chunks of 32 vectors of 16 bytes, so that neighbouring
// lanes touch neighbouring vectors and every access of the warp is one run of 512 bytes.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.cuh"

namespace ste_ops {

template <class T>
struct Vector {
  static constexpr int size = 16 / sizeof(T);
  T value[size];
};

constexpr int kChunksPerWarp = 4;  // 64 bytes a thread in flight before the first use
constexpr int kElementwiseThreads = 256;

template <class T>
constexpr int64_t kChunk = int64_t(kWarpSize) * Vector<T>::size;

template <class T>
int64_t elementwise_blocks(int64_t numel) {
  return blocks_for(numel, kChunk<T> * kChunksPerWarp * (kElementwiseThreads / kWarpSize));
}

STE_HD bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// The first element of this thread's vector in chunk k of its warp. Chunks of one k lie side by side over the block.
template <class T>
__device__ int64_t vector_begin(int k) {
  int64_t chunk = (int64_t(blockIdx.x) * kChunksPerWarp + k) * warp_count() + warp_index();
  return chunk * kChunk<T> + int64_t(lane_index()) * Vector<T>::size;
}

// Reads the vector at `begin`; one by one where it is unaligned or crosses the end, T{} past the end.
template <class T>
__device__ Vector<T> read_vector(const T* x, int64_t begin, int64_t numel, bool aligned) {
  Vector<T> v;
  if (aligned && begin + Vector<T>::size <= numel) {
    uint4 words = *reinterpret_cast<const uint4*>(x + begin);
    memcpy(&v, &words, 16);
  } else {
    for (int i = 0; i < Vector<T>::size; ++i) v.value[i] = begin + i < numel ? x[begin + i] : T{};
  }
  return v;
}

// An ordinary store that stays whole: an assignment nvcc takes apart into the elements it was made of, and __stwb
// becomes one that all threads of the multiprocessor see at once (STG.STRONG.SM).
__device__ inline void store_whole(uint4* to, const uint4& words) {
#ifdef STE_OPS_EMULATED
  *to = words;
#else
  asm("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
      : "memory");
#endif
}

template <class T>
__device__ void write_vector(T* x, int64_t begin, int64_t numel, bool aligned, const Vector<T>& v) {
  if (aligned && begin + Vector<T>::size <= numel) {
    uint4 words;
    memcpy(&words, &v, 16);
    store_whole(reinterpret_cast<uint4*>(x + begin), words);
  } else {
    for (int i = 0; i < Vector<T>::size; ++i) {
      if (begin + i < numel) x[begin + i] = v.value[i];
    }
  }
}

}  // namespace ste_ops
