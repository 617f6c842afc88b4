// The loops that change elements.
#pragma once

#include "cpu/clip/blocks.h"

namespace ste_ops {

// Multiplies, zeroes or leaves alone, in parallel.
void rewrite(const Blocks& blocks, const Scaling& scaling);

// x and out may be the same memory, which is why the compiler is told not to check.
template <class T>
STE_OPS_CLONES void scale_loop(const T* x, T* out, int64_t count, arithmetic_t<T> coefficient) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(load(x[i]) * coefficient);
}

template <class T>
STE_OPS_CLONES void clamp_loop(const T* x, T* out, int64_t count, arithmetic_t<T> bound) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(clamp_magnitude(load(x[i]), bound));
}

// A block in place, by tiles: change(x, count) says whether it wrote.
template <class Change>
struct ChangeBlock {
  Change change;

  void operator()(const TensorData& tensor, int64_t begin, int64_t end, int64_t /* number of the block */) const {
    visit_storage(tensor.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      for_each_tile<T>(tensor, begin, end, change);
    });
  }
};

struct Scale {
  double coefficient;

  template <class T>
  bool operator()(T* x, int64_t count) const {
    scale_loop(x, x, count, arithmetic_t<T>(coefficient));
    return true;
  }
};

}  // namespace ste_ops
