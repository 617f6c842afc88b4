// From a surrogate's number to its struct.
#pragma once

#include <tuple>

#include "core/binarize/surrogate.h"
#include "ops/dispatch.h"

namespace ste_ops {

template <class F>
void dispatch_surrogate(const char* op, int64_t surrogate, double a, double b, F&& f) {
  STE_CHECK(
      visit_surrogate(surrogate, a, b, f), op, ": surrogate must be in [0, ", std::tuple_size_v<Surrogates>, "), got ",
      surrogate);
}

// Numbers that a tensor holds, which are read when the loop runs, on its device.
inline const double* numbers_of(
    const char* op, const char* name, const Tensor& numbers, int64_t count, const Tensor& x) {
  STE_CHECK(
      numbers.scalar_type() == ScalarType::Double && numbers.numel() == count && numbers.is_contiguous() &&
          numbers.device() == x.device(),
      op, ": ", name, " must be contiguous float64 on x's device, of ", count, " elements, got ", numbers.numel(),
      " of ", torch::headeronly::toString(numbers.scalar_type()));
  return const_data<double>(numbers);
}

inline Saves saves_of(const char* op, int64_t surrogate) {
  Saves saves = Saves::nothing;
  dispatch_surrogate(op, surrogate, 1, 1, [&](auto s) { saves = s.saves; });
  return saves;
}

}  // namespace ste_ops
