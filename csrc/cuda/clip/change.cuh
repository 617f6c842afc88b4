// How an element changes: whether the launch leaves all of them alone, and the rule for one.
#pragma once

#include "core/clip/norm.h"
#include "cuda/launch.cuh"
#include "ops/dispatch.h"

namespace ste_ops {

// By the coefficient of a norm that lies on the device.
// Moves: reads norm, writes 0; norm is 4 or 8.
struct Scale {
  const void* norm;
  bool float64;
  double max_norm;
  NonFinite nonfinite;

  __device__ Scaling scaling() const {
    double value = float64 ? *static_cast<const double*>(norm) : double(*static_cast<const float*>(norm));
    return ste_ops::scaling(value, max_norm, nonfinite);
  }
  __device__ bool leaves() const { return scaling().action == Scaling::kLeave; }
  template <class T>
  __device__ auto rule() const {
    const Scaling how = scaling();
    const bool zero = how.action == Scaling::kZero;
    arithmetic_t<T> c = arithmetic_t<T>(how.coefficient);
    return [zero, c](T x) { return zero ? T{} : store<T>(load(x) * c); };
  }
};

// Moves: reads 0, writes 0.
struct ClampGradient {
  double clip_value;
  __device__ bool leaves() const { return false; }
  template <class T>
  __device__ auto rule() const {
    arithmetic_t<T> bound = clip_bound<T>(clip_value);
    return [bound](T x) { return store<T>(clamp_magnitude(load(x), bound)); };
  }
};

inline Scale scale_by(const Tensor& norm, double max_norm, NonFinite nonfinite = NonFinite::kPropagate) {
  return {norm.const_data_ptr(), norm.scalar_type() == ScalarType::Double, max_norm, nonfinite};
}

}  // namespace ste_ops
