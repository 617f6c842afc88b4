// From a surrogate's number to its struct.
#pragma once

#include <tuple>

#include "core/binarize/surrogate.h"
#include "ops/dispatch.h"

namespace ste_ops {

template <class F>
void dispatch_surrogate(const char* op, int64_t surrogate, double a, double b, F&& f) {
  STD_TORCH_CHECK(
      visit_surrogate(surrogate, a, b, f), op, ": surrogate must be in [0, ", std::tuple_size_v<Surrogates>, "), got ",
      surrogate);
}

inline Saves saves_of(const char* op, int64_t surrogate) {
  Saves saves = Saves::nothing;
  dispatch_surrogate(op, surrogate, 1, 1, [&](auto s) { saves = s.saves; });
  return saves;
}

}  // namespace ste_ops
