// The loops of the curves. They exist in float32 and float64 alone; tiles of 16-bit elements pass through float32
// buffers in the first-level cache, so that what takes long to compile is compiled once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/binarize/surrogate.h"
#include "cpu/widen.h"

namespace ste_ops {

constexpr int64_t kCurveTile = 1024;

template <int order, class S, class A>
struct Slope {
  S curve;
  const A *grad, *x;
  A* out;

  STE_OPS_INLINE void operator()(int64_t i) const {
    A slope;
    if constexpr (order == 1) {
      slope = curve.derivative(x[i]);
    } else {
      slope = curve.second(x[i]);
    }
    // Closed by its bits: out of a choice the compiler makes masked loads, which do not start the hardware's
    // prefetching.
    using U = bits_t<A>;
    U open = slope == A(0) ? U(0) : ~U(0);
    out[i] = bit_cast<A>(U(bit_cast<U>(grad[i] * slope) & open));
  }
};

template <class T>
struct Multiply {
  const T* x;
  arithmetic_t<T>* out;

  STE_OPS_INLINE void operator()(int64_t i) const { out[i] *= load(x[i]); }
};

// Asks for the cache lines of the tile after this one: the arithmetic of a tile is long enough to hide them.
template <class T>
STE_OPS_INLINE void prefetch_tile(const T* tile) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kCurveTile; i += kLine) __builtin_prefetch(tile + i);
}

template <class T>
STE_OPS_INLINE void prefetch_tile_for_write(T* tile) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kCurveTile; i += kLine) __builtin_prefetch(tile + i, 1);
}

// grad s'(x), or with a second factor their product times s''(x).
template <int order, class S, class T>
void curve_range(const S& curve, const T* const (&factors)[2], const T* x, T* out, int64_t begin, int64_t end) {
  using A = arithmetic_t<T>;
  constexpr bool converts = !std::is_same_v<A, T>;
  A grad[kCurveTile], values[converts ? kCurveTile : 1], results[converts ? kCurveTile : 1];
  for (int64_t i = begin; i < end; i += kCurveTile) {
    const int64_t count = std::min(kCurveTile, end - i), next = i + kCurveTile;
    prefetch_tile(x + next);
    for (int k = 0; k < order; ++k) prefetch_tile(factors[k] + next);
    prefetch_tile_for_write(out + next);
    if constexpr (order == 1 && !converts) {
      each(Slope<1, S, A>{curve, factors[0], x, out}, i, i + count);
      continue;
    }
    each(Widen<T>{factors[0] + i, grad}, 0, count);
    if constexpr (order == 2) each(Multiply<T>{factors[1] + i, grad}, 0, count);
    if constexpr (converts) {
      each(Widen<T>{x + i, values}, 0, count);
      each(Slope<order, S, A>{curve, grad, values, results}, 0, count);
      each(Narrow<T>{results, out + i}, 0, count);
    } else {
      each(Slope<order, S, A>{curve, grad, x + i, out + i}, 0, count);
    }
  }
}

}  // namespace ste_ops
