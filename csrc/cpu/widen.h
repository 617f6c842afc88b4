// Between storage and arithmetic: float16 and bfloat16 pass through float32 buffers in the first-level cache. The
// compiler does not vectorize a loop that compares floats and makes 16-bit lanes of the result, and a long loop is
// compiled once for the three types.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "cpu/loop.h"

namespace ste_ops {

template <class T>
struct Widen {
  const T* x;
  arithmetic_t<T>* out;
  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = load(x[i]); }
};

template <class T>
struct Narrow {
  const arithmetic_t<T>* x;
  T* out;
  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = store<T>(x[i]); }
};

// Elements that the first-level cache holds with what is made of them; whole words of a mask.
constexpr int64_t kBatch = 1024;

// Calls f(x, out, i, count) for batches of [begin, end) in turn, x and out pointing to the batch in the arithmetic.
template <class T, class F>
void in_batches(const T* x, T* out, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = begin; i < end; i += kBatch) {
    const int64_t count = std::min(kBatch, end - i);
    if constexpr (sizeof(T) == 2) {
      arithmetic_t<T> wide[kBatch], results[kBatch];
      each(Widen<T>{x + i, wide}, 0, count);
      f(static_cast<const arithmetic_t<T>*>(wide), results, i, count);
      each(Narrow<T>{results, out + i}, 0, count);
    } else {
      f(x + i, out + i, i, count);
    }
  }
}

}  // namespace ste_ops
