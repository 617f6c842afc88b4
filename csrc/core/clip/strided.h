// Memory layouts: a tensor's elements as the fewest dimensions that reach them all, whatever their order.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace ste_ops {

// Dimensions of size 1 and dimensions that continue each other are gone; strides descend. A dense tensor (any
// permutation of a contiguous one) has no dimension left: its memory is `numel` consecutive elements.
struct Strided {
  static constexpr int kMaxDims = 24;
  int dims = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};

  STE_HD int64_t offset(int64_t index) const {
    int64_t offset = 0;
    for (int d = dims - 1; d > 0; --d) {
      offset += index % sizes[d] * strides[d];
      index /= sizes[d];
    }
    return dims > 0 ? offset + index * strides[0] : index;
  }

  bool operator==(const Strided& other) const {
    if (dims != other.dims) return false;
    for (int d = 0; d < dims; ++d) {
      if (sizes[d] != other.sizes[d] || strides[d] != other.strides[d]) return false;
    }
    return true;
  }
};

// Fills `layout`; false where more than kMaxDims dimensions remain.
inline bool collapse(const int64_t* sizes, const int64_t* strides, int64_t dims, Strided& layout) {
  int count = 0;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 1) continue;
    if (count == Strided::kMaxDims) return false;
    int place = count++;
    for (; place > 0 && layout.strides[place - 1] < strides[d]; --place) {
      layout.sizes[place] = layout.sizes[place - 1];
      layout.strides[place] = layout.strides[place - 1];
    }
    layout.sizes[place] = sizes[d];
    layout.strides[place] = strides[d];
  }
  int kept = 0;
  for (int d = 0; d < count; ++d) {
    if (kept > 0 && layout.strides[kept - 1] == layout.sizes[d] * layout.strides[d]) {
      layout.sizes[kept - 1] *= layout.sizes[d];
      layout.strides[kept - 1] = layout.strides[d];
    } else {
      layout.sizes[kept] = layout.sizes[d];
      layout.strides[kept++] = layout.strides[d];
    }
  }
  layout.dims = kept == 1 && layout.strides[0] == 1 ? 0 : kept;
  return true;
}

// Whether it is certain that no two elements share memory: each stride reaches past all that the smaller ones span.
// Interleaved layouts that happen not to collide (sizes 2 and 3 with strides 3 and 2) count as sharing.
inline bool never_overlaps(const Strided& layout) {
  int64_t span = 0;
  for (int d = layout.dims - 1; d >= 0; --d) {
    if (layout.strides[d] <= span) return false;
    span += (layout.sizes[d] - 1) * layout.strides[d];
  }
  return true;
}

}  // namespace ste_ops
