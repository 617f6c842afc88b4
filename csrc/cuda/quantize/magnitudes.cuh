// The statistics of magnitudes that weights are scaled by.
#pragma once

#include "core/quantize/scaled.h"
#include "cuda/reduce.cuh"

namespace ste_ops {

// What the lanes of a reduction add: the magnitudes.
// Moves: reads n * T, writes 0.
template <class T>
struct MagnitudeTerms {
  const T* x;
  __device__ MagnitudeTerms for_lanes(const int64_t*) const { return *this; }
  template <class State>
  __device__ void operator()(int64_t begin, int64_t end, State* terms) const {
    Vector<T> v = read_vector(x, begin, end, aligned16(x + begin));
#pragma unroll
    for (int k = 0; k < Vector<T>::size; ++k) terms[k] = State(magnitude(load(v.value[k])));
  }
};

// Moves: reads 0, writes groups * A.
template <class A>
struct KeepMean {
  A* means;
  int64_t members;
  double least;
  __device__ void operator()(int64_t group, double total) const {
    means[group] = at_least(mean_of<A>(total, members), A(least));
  }
};

}  // namespace ste_ops
