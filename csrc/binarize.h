// What both backends of the binarize family do around their loops: checks, layout, allocation.
#pragma once

#include <optional>
#include <tuple>

#include "core/binarize.h"
#include "core/bitmask.h"
#include "core/surrogate.h"
#include "dispatch.h"

namespace ste_ops {

template <class F>
void dispatch_surrogate(const char* op, int64_t surrogate, double a, double b, F&& f) {
  STD_TORCH_CHECK(visit_surrogate(surrogate, a, b, f), op, ": surrogate must be in [0, ", std::tuple_size_v<Surrogates>,
                  "), got ", surrogate);
}

// `loop(surrogate, Type<T>, x, out, mask, numel)` fills out, and mask where the surrogate saves one, in memory order.
template <class Loop>
std::tuple<Tensor, Tensor> binarize(const char* op, const Tensor& x, int64_t surrogate, double a, double b,
                                    Loop&& loop) {
  std::optional<Tensor> mask, out;
  dispatch_surrogate(op, surrogate, a, b, [&](auto s) {
    // The small one first: a heap that serves them in this order finds the same place for `out` at every step.
    mask = empty_vector(s.saves == Saves::mask ? mask_bytes(x.numel()) : 0, ScalarType::Byte, x);
    out = new_like(x);
    if (x.numel() == 0) return;
    Tensor dense = in_layout_of(*out, x);
    dispatch_floating(op, "x", x, [&](auto type) {
      loop(s, type, dense.const_data_ptr(), out->mutable_data_ptr(), static_cast<uint8_t*>(mask->mutable_data_ptr()),
           x.numel());
    });
  });
  return {*out, *mask};
}

// `loop(Type<T>, grad, mask, out, numel)` passes grad where the mask says so. Both are in row-major order here: the
// Function permutes the gradient of a tensor that was not.
template <class Loop>
Tensor binarize_backward(const Tensor& grad, const Tensor& mask, Loop&& loop) {
  constexpr const char* op = "binarize_backward";
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte, op, ": mask must be uint8, got ",
                  torch::headeronly::toString(mask.scalar_type()));
  STD_TORCH_CHECK(mask.numel() == mask_bytes(grad.numel()) && mask.is_contiguous(), op, ": mask must hold ",
                  mask_bytes(grad.numel()), " contiguous bytes for ", grad.numel(), " elements, got ", mask.numel());
  STD_TORCH_CHECK(mask.device() == grad.device(), op, ": grad and mask must be on one device");
  Tensor dense = row_major(grad);
  Tensor out = new_like(dense);
  if (grad.numel() == 0) return out;
  dispatch_floating(op, "grad", grad, [&](auto type) {
    loop(type, dense.const_data_ptr(), static_cast<const uint8_t*>(mask.const_data_ptr()), out.mutable_data_ptr(),
         grad.numel());
  });
  return out;
}

}  // namespace ste_ops
