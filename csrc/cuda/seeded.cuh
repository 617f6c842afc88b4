// Element-wise kernels that draw for every element, in rows of which each has a seed and counts its draws from 0.
#pragma once

#include "core/groups.h"
#include "core/sampling/philox.h"
#include "cuda/vector.cuh"

namespace ste_ops {

// out = f(x, place, 64 random bits) for the elements of `rows` rows. The next vector is on its way while this one is
// drawn for, which takes longer than the load. Past the end f gets T{}.
template <class T, class F>
__device__ void map_drawn(const T* x, const uint64_t* seed, int64_t rows, int64_t in_row, T* out, bool aligned, F f) {
  const int64_t numel = rows * in_row;
  Vector<T> ahead = read_vector(x, vector_begin<T>(0), numel, aligned);
#pragma unroll 1
  for (int k = 0; k < kChunksPerWarp; ++k) {
    const int64_t begin = vector_begin<T>(k);
    if (begin >= numel) return;
    // The division, a call in 64 bits, before the second vector is there to be kept across it.
    int64_t row = rows == 1 ? 0 : divided(begin, in_row), index = begin - row * in_row;
    Vector<T> v = ahead;
    if (k + 1 < kChunksPerWarp) ahead = read_vector(x, vector_begin<T>(k + 1), numel, aligned);
    uint64_t key = seed[row];
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      v.value[i] = f(v.value[i], begin + i, low_bits(philox_draw(key, 0, uint64_t(index))));
      if (++index < in_row) continue;
      index = 0;
      row = row + 1 < rows ? row + 1 : 0;
      key = seed[row];
    }
    write_vector(out, begin, numel, aligned, v);
  }
}

}  // namespace ste_ops
