// Weights as the backends take them, checked and row-major, and the tensors that are made for their rows.
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

// The memory of a tensor as numbers of type V.
template <class V>
const V* typed_data(const Tensor& x) {
  return static_cast<const V*>(x.const_data_ptr());
}
template <class V>
V* mutable_typed_data(const Tensor& x) {
  return static_cast<V*>(x.mutable_data_ptr());
}
inline const uint64_t* unsigned_data(const Tensor& x) { return typed_data<uint64_t>(x); }
inline uint64_t* mutable_unsigned_data(const Tensor& x) { return mutable_typed_data<uint64_t>(x); }

inline void check_weights(const char* op, const Tensor& weights) {
  STE_CHECK(weights.dim() == 1 || weights.dim() == 2, op, ": weights must be 1-D or 2-D, got ", weights.dim(), "-D");
  int64_t n = Distributions(weights).n;
  STE_CHECK(n > 0, op, ": weights must not be empty");
  STE_CHECK(n <= kMaxCategories, op, ": weights must have at most ", kMaxCategories, " categories, got ", n);
}

// One int64 for each row.
inline Tensor empty_row_state(const Tensor& weights) {
  return empty_int64({weights.sizes().data(), weights.dim() == 2 ? size_t(1) : size_t(0)}, weights);
}

// `num_samples` int64 for each row.
inline Tensor empty_draws(const Tensor& weights, int64_t num_samples) {
  const int64_t sizes[2] = {Distributions(weights).rows, num_samples};
  return empty_int64({sizes + 2 - weights.dim(), size_t(weights.dim())}, weights);
}

// Weights as the backends take them: checked and row-major.
struct Weights {
  Tensor dense;
  int64_t rows, n;
  bool one_row;  // faults then name no row

  Weights(const char* op, const Tensor& weights) : dense(weights) {
    check_weights(op, weights);
    const Distributions shape(weights);
    rows = shape.rows;
    n = shape.n;
    one_row = weights.dim() == 1;
    dense = row_major(weights);
  }
  template <class T>
  const bits_t<T>* bits() const {
    return typed_data<bits_t<T>>(dense);
  }
};

// Calls f(Type<T>{}) for the dtype of the weights, if there are any.
template <class F>
void dispatch_weights(const char* op, const Weights& weights, F&& f) {
  if (weights.rows > 0) dispatch_floating(op, "weights", weights.dense, f);
}

}  // namespace ste_ops
