// What both backends of the binarize family do around their loops: checks, layout, allocation.
#pragma once

#include <optional>
#include <tuple>

#include "core/binarize/binarizers.h"
#include "core/binarize/surrogate.h"
#include "ops/checks.h"
#include "ops/mask.h"

namespace ste_ops {

template <class F>
void dispatch_surrogate(const char* op, int64_t surrogate, double a, double b, F&& f) {
  STD_TORCH_CHECK(
      visit_surrogate(surrogate, a, b, f), op, ": surrogate must be in [0, ", std::tuple_size_v<Surrogates>, "), got ",
      surrogate);
}

// `loop(surrogate, Type<T>, x, out, mask, numel)` fills out, and mask where the surrogate saves one, in memory order.
template <class Loop>
std::tuple<Tensor, Tensor> binarize(
    const char* op, const Tensor& x, int64_t surrogate, double a, double b, Loop&& loop) {
  std::optional<Tensor> mask, out;
  dispatch_surrogate(op, surrogate, a, b, [&](auto s) {
    // The small one first: a heap that serves them in this order finds the same place for `out` at every step.
    mask = s.saves == Saves::mask ? new_mask(x) : empty_vector(0, ScalarType::Byte, x);
    out = new_like(x);
    if (x.numel() == 0) return;
    Tensor dense = in_layout_of(*out, x);
    dispatch_floating(op, "x", x, [&](auto type) {
      auto fill = [&](auto s) {
        loop(s, type, dense.const_data_ptr(), out->mutable_data_ptr(), mutable_bytes(*mask), x.numel());
      };
      // Where no mask is made the forward does not depend on the surrogate: one loop serves them all.
      if constexpr (decltype(s)::saves == Saves::mask) {
        fill(s);
      } else {
        fill(Identity(0, 0));
      }
    });
  });
  return {*out, *mask};
}

// `loop(Type<T>, grad, mask, out, numel)` gives grad times the factor where the mask says so, else 0. Both are in
// row-major order here: the Function permutes the gradient of a tensor that was not.
template <class Loop>
Tensor binarize_backward(const Tensor& grad, const Tensor& mask, Loop&& loop) {
  constexpr const char* op = "binarize_backward";
  check_mask(op, "mask", mask, grad);
  Tensor dense = row_major(grad);
  Tensor out = new_like(dense);
  if (grad.numel() == 0) return out;
  dispatch_floating(op, "grad", grad, [&](auto type) {
    loop(type, dense.const_data_ptr(), const_bytes(mask), out.mutable_data_ptr(), grad.numel());
  });
  return out;
}

// `loop(curve, Type<T>, parameters, factors, x, out, numel)` gives the product of the factors, which are the incoming
// gradients, and of the curve's derivative at x, in x's layout. `parameters` stand in for a and b where they are not
// null.
template <class Loop>
Tensor curve(
    const char* op, std::initializer_list<std::pair<const char*, const Tensor*>> factors, const Tensor& x,
    int64_t surrogate, double a, double b, const std::optional<Tensor>& parameters, Loop&& loop) {
  for (auto [argument, factor] : factors) check_like(op, argument, *factor, "x", x);
  if (parameters) {
    STD_TORCH_CHECK(
        parameters->scalar_type() == ScalarType::Double && parameters->numel() == 2 && parameters->is_contiguous() &&
            parameters->device() == x.device(),
        op, ": parameters must be two contiguous float64 numbers on x's device");
  }
  Tensor out = new_like(x);
  dispatch_surrogate(op, surrogate, a, b, [&](auto s) {
    if constexpr (decltype(s)::saves == Saves::input) {
      if (x.numel() == 0) return;
      Tensor dense = in_layout_of(out, x);
      Tensor kept[2] = {dense, dense};
      const void* pointers[2] = {};
      int count = 0;
      for (auto [_, factor] : factors) {
        kept[count] = in_layout_of(out, *factor);
        pointers[count] = kept[count].const_data_ptr();
        ++count;
      }
      const double* numbers = parameters ? static_cast<const double*>(parameters->const_data_ptr()) : nullptr;
      dispatch_floating(op, "x", x, [&](auto type) {
        loop(s, type, numbers, pointers, dense.const_data_ptr(), out.mutable_data_ptr(), x.numel());
      });
    } else {
      STD_TORCH_CHECK(false, op, ": surrogate must be a curve, got ", s.name);
    }
  });
  return out;
}

}  // namespace ste_ops
