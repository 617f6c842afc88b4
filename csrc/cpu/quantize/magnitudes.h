// The statistics of magnitudes that weights are scaled by.
#pragma once

#include <vector>

#include "core/quantize/scaled.h"
#include "cpu/quantize/groups.h"

namespace ste_ops {

template <class T>
struct MagnitudeTerm {
  const T* x;
  STE_OPS_INLINE auto operator()(int64_t i, int64_t) const { return magnitude(load(x[i])); }
};

template <class Reduction, class T>
std::vector<double> reduce_magnitudes(const Groups& groups, const T* x) {
  return reduce_each<Reduction, arithmetic_t<T>>(groups, MagnitudeTerm<T>{x});
}

}  // namespace ste_ops
