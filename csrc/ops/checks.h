// What several families ask of an argument. Each error names the operator, the argument, what was expected and what
// came.
#pragma once

#include <string>

#include "ops/layout.h"

namespace ste_ops {

inline std::string shape_of(const Tensor& x) {
  std::string shape = "[";
  for (int64_t d = 0; d < x.dim(); ++d) shape += (d ? ", " : "") + std::to_string(x.size(d));
  return shape + "]";
}

// "x's", "logits'".
inline std::string possessive(const char* name) {
  const std::string noun = name;
  return noun + (noun.back() == 's' ? "'" : "'s");
}

// A gradient (or another factor of one) has the shape, the dtype and the device of what it is the gradient of.
inline void check_like(
    const char* op, const char* name, const Tensor& tensor, const char* other_name, const Tensor& x) {
  STE_CHECK(
      tensor.scalar_type() == x.scalar_type(), op, ": ", name, " must have ", possessive(other_name), " dtype ",
      torch::headeronly::toString(x.scalar_type()), ", got ", torch::headeronly::toString(tensor.scalar_type()));
  bool same = tensor.dim() == x.dim();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = tensor.size(d) == x.size(d);
  STE_CHECK(
      same, op, ": ", name, " must have ", possessive(other_name), " shape ", shape_of(x), ", got ", shape_of(tensor));
  STE_CHECK(tensor.device() == x.device(), op, ": ", name, " and ", other_name, " must be on one device");
}

inline void check_seed(const char* op, const Tensor& seed, const Tensor& other, const char* name) {
  STE_CHECK(
      seed.scalar_type() == ScalarType::Long, op, ": seed must be int64, got ",
      torch::headeronly::toString(seed.scalar_type()));
  STE_CHECK(seed.device() == other.device(), op, ": seed and ", name, " must be on one device");
  STE_CHECK(seed.is_contiguous(), op, ": seed must be contiguous");
}

inline void check_one_seed(const char* op, const Tensor& seed, const Tensor& other, const char* name) {
  check_seed(op, seed, other, name);
  STE_CHECK(seed.numel() == 1, op, ": seed must have one element, got ", seed.numel());
}

// One seed for all of x, or one for each row of a contiguous x: how many rows are drawn apart.
inline int64_t seed_rows(const char* op, const Tensor& seed, const Tensor& x, const char* name) {
  check_seed(op, seed, x, name);
  const int64_t rows = seed.numel();
  STE_CHECK(
      rows == 1 || (x.dim() > 0 && x.size(0) == rows && x.is_contiguous()), op,
      ": seed must have one element, or one for each row of a contiguous ", name, ", got ", rows);
  return rows;
}

}  // namespace ste_ops
