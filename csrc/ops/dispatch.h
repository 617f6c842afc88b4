// From a tensor's run-time dtype to the C++ type that holds it.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "core/dtype.h"
#include "ops/check.h"

namespace ste_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) for the four floating dtypes.
template <class F>
void dispatch_floating(const char* op, const char* argument, const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    case ScalarType::BFloat16: return f(Type<BFloat16>{});
    case ScalarType::Half: return f(Type<Half>{});
    default:
      STE_CHECK(
          false, op, ": ", argument, " must be float64, float32, bfloat16 or float16, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

// The same, but for nothing where the tensor has no elements.
template <class F>
void dispatch_elements(const char* op, const char* argument, const Tensor& tensor, F&& f) {
  if (tensor.numel() > 0) dispatch_floating(op, argument, tensor, f);
}

template <class T>
const T* const_data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// The dtype of the arithmetic on x, and of statistics of it.
inline ScalarType arithmetic_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace ste_ops
