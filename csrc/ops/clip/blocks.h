// The division of a tensor list into blocks.
#pragma once

#include <algorithm>
#include <vector>

#include "core/clip/norm.h"
#include "ops/clip/tensor_list.h"

namespace ste_ops {

// Tensors divided into blocks of kBlock elements. A block never crosses from one tensor into the next, so a tensor's
// partial results do not depend on its neighbours.
class Blocks {
 public:
  explicit Blocks(const std::vector<TensorData>& tensors) : Blocks(tensors.data(), tensors.size()) {}
  Blocks(const TensorData* tensors, size_t count) : tensors_(tensors), element_(count + 1), block_(count + 1) {
    for (size_t t = 0; t < count; ++t) {
      element_[t + 1] = element_[t] + tensors[t].numel;
      block_[t + 1] = block_[t] + (tensors[t].numel + kBlock - 1) / kBlock;
    }
  }

  size_t count() const { return element_.size() - 1; }
  int64_t numel() const { return element_.back(); }
  int64_t block_count() const { return block_.back(); }
  const TensorData& tensor(size_t t) const { return tensors_[t]; }
  int64_t first_element(size_t t) const { return element_[t]; }
  int64_t first_block(size_t t) const { return block_[t]; }
  // The tensor that holds this element.
  size_t find_element(int64_t element) const {
    return std::upper_bound(element_.begin(), element_.end(), element) - element_.begin() - 1;
  }

 private:
  const TensorData* tensors_;
  std::vector<int64_t> element_;
  std::vector<int64_t> block_;
};

}  // namespace ste_ops
