// What can be wrong with the values of an argument, and the words for it. Where the host sees the values the operator
// raises at once; a CUDA kernel reports the fault instead (csrc/cuda/sampling/fault.cuh).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "core/dtype.h"

namespace ste_ops {

enum class FaultKind : int64_t { kWeight, kOnlyZeros, kTooFew, kProbability, kIndex };

// `row` is -1 where the argument is one row.
struct Fault {
  FaultKind kind;
  int64_t row, index, limit;
  double value;

  // A weight that is negative, NaN or infinite.
  STE_HD static Fault weight(int64_t row, int64_t index, double value) {
    return {FaultKind::kWeight, row, index, 0, value};
  }
  STE_HD static Fault only_zeros(int64_t row) { return {FaultKind::kOnlyZeros, row, 0, 0, 0}; }
  // More draws without replacement than positive weights.
  STE_HD static Fault too_few(int64_t row, int64_t num_samples, int64_t positive) {
    return {FaultKind::kTooFew, row, num_samples, positive, 0};
  }
  STE_HD static Fault probability(int64_t index, double value) {
    return {FaultKind::kProbability, -1, index, 0, value};
  }
  // A category, found at `position` of the argument `indices`, that is not one of `limit`.
  STE_HD static Fault out_of_range(int64_t position, int64_t index, int64_t limit) {
    return {FaultKind::kIndex, position, index, limit, 0};
  }
};

// As Python prints it: the shortest decimal that reads back as x.
inline std::string decimal(double x) {
  if (x != x) return "nan";
  const bool fixed = x == 0 || (std::fabs(x) >= 1e-4 && std::fabs(x) < 1e16);
  char text[48];
  for (int digits = 1; digits <= 20; ++digits) {
    snprintf(text, sizeof text, fixed ? "%.*f" : "%.*g", digits, x);
    if (std::strtod(text, nullptr) == x) break;
  }
  return text;
}

inline std::string words(const std::string& op, const Fault& fault) {
  const std::string row = std::to_string(fault.row), index = std::to_string(fault.index);
  const std::string in_row = fault.row < 0 ? "" : " in row " + row;
  switch (fault.kind) {
    case FaultKind::kWeight:
      return op + ": weights must be " +
          (std::isinf(fault.value) || !(fault.value < 0) ? "finite and non-negative" : "non-negative") + ", got " +
          decimal(fault.value) + " at index " + (fault.row < 0 ? index : "(" + row + ", " + index + ")");
    case FaultKind::kOnlyZeros: return op + ": weights must have a positive sum, got only zeros" + in_row;
    case FaultKind::kTooFew:
      return op + ": num_samples must be at most " + std::to_string(fault.limit) + ", the number of positive weights" +
          in_row + ", without replacement, got " + index;
    case FaultKind::kProbability:
      return op + ": p must be in [0, 1], got " + decimal(fault.value) + " at index " + index;
    case FaultKind::kIndex:
      return op + ": indices must be in [0, " + std::to_string(fault.limit) + "), got " + index + " at position " + row;
  }
  return op + ": an unknown fault";
}

[[noreturn]] inline void refuse(const std::string& op, const Fault& fault) {
  throw std::runtime_error(words(op, fault));
}

// The fault that the state of a row of n weights tells (csrc/registration.cpp): 0 where all are zero, -1 - i where
// weight i is the first invalid one; a state above 0 tells none.
template <class T>
STE_HD Fault fault_of_state(int64_t state, const bits_t<T>* weights, int64_t n, int64_t row, bool one_row) {
  const int64_t number = one_row ? -1 : row, index = -1 - state;
  if (state == 0) return Fault::only_zeros(number);
  return Fault::weight(number, index, double(load(bit_cast<T>(weights[row * n + index]))));
}

}  // namespace ste_ops
