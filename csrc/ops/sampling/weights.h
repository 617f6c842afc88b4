// What the operators of the sampling family check and allocate.
#pragma once

#include "core/sampling/mass.h"
#include "ops/checks.h"

namespace ste_ops {

// Weights of one distribution, or of one in each row.
struct Distributions {
  int64_t rows, n;
  explicit Distributions(const Tensor& weights)
      : rows(weights.dim() == 2 ? weights.size(0) : 1), n(weights.dim() == 0 ? 0 : weights.size(weights.dim() - 1)) {}
};

inline Tensor empty_int64(IntHeaderOnlyArrayRef sizes, const Tensor& like) {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes[1] > 0 ? sizes[1] : 1;
  return empty_strided(sizes, {strides, sizes.size()}, ScalarType::Long, like);
}

inline const uint64_t* unsigned_data(const Tensor& x) { return static_cast<const uint64_t*>(x.const_data_ptr()); }
inline uint64_t* mutable_unsigned_data(const Tensor& x) { return static_cast<uint64_t*>(x.mutable_data_ptr()); }

inline void check_weights(const char* op, const Tensor& weights) {
  STD_TORCH_CHECK(
      weights.dim() == 1 || weights.dim() == 2, op, ": weights must be 1-D or 2-D, got ", weights.dim(), "-D");
  int64_t n = Distributions(weights).n;
  STD_TORCH_CHECK(n > 0, op, ": weights must not be empty");
  STD_TORCH_CHECK(n <= kMaxCategories, op, ": weights must have at most ", kMaxCategories, " categories, got ", n);
}

// One int64 for each row.
inline Tensor empty_row_state(const Tensor& weights) {
  return empty_int64({weights.sizes().data(), weights.dim() == 2 ? size_t(1) : size_t(0)}, weights);
}

}  // namespace ste_ops
