// Masks: one bit for each element of a tensor (core/bitmask.h), in its memory order.
#pragma once

#include "core/bitmask.h"
#include "ops/layout.h"

namespace ste_ops {

inline Tensor new_mask(const Tensor& x) { return empty_vector(mask_bytes(x.numel()), ScalarType::Byte, x); }
inline uint8_t* mutable_bytes(const Tensor& mask) { return mutable_data<uint8_t>(mask); }
inline const uint8_t* const_bytes(const Tensor& mask) { return const_data<uint8_t>(mask); }

inline void check_mask(const char* op, const char* name, const Tensor& mask, const Tensor& grad) {
  STE_CHECK(
      mask.scalar_type() == ScalarType::Byte, op, ": ", name, " must be uint8, got ",
      torch::headeronly::toString(mask.scalar_type()));
  STE_CHECK(
      mask.numel() == mask_bytes(grad.numel()) && mask.is_contiguous(), op, ": ", name, " must hold ",
      mask_bytes(grad.numel()), " contiguous bytes for ", grad.numel(), " elements, got ", mask.numel());
  STE_CHECK(mask.device() == grad.device(), op, ": grad and ", name, " must be on one device");
}

}  // namespace ste_ops
