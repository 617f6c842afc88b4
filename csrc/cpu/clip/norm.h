// The norms of what the processor reads.
#pragma once

#include "ops/clip/norm.h"

namespace ste_ops {

// The p-norm of all blocks, in parallel; with `of_each` that of each tensor too, from the same pass.
double norm_of_blocks(const Blocks& blocks, double p, bool has_float64, double* of_each = nullptr);

// The p-norm of one row of consecutive elements.
double norm_of_row(const void* x, int64_t length, Storage storage, double p);

// The norm of a list, which `blocks` divide, and where it is asked for that of each of its tensors.
Norms norms_of(const TensorList& list, const Blocks& blocks, double p, bool each);

inline void write_norm(const Tensor& out, int64_t index, double norm) {
  if (out.scalar_type() == ScalarType::Double) {
    static_cast<double*>(out.mutable_data_ptr())[index] = norm;
  } else {
    static_cast<float*>(out.mutable_data_ptr())[index] = float(norm);
  }
}

}  // namespace ste_ops
