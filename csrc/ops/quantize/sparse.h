// Calls of N:M sparsity: groups, checks, layout, allocation.
#pragma once

#include "core/quantize/sparse.h"
#include "ops/checks.h"

namespace ste_ops {

// Dense memory as `groups` blocks of m * inner elements; the m elements of a group lie `inner` apart.
struct Neighbours {
  int64_t groups, m, inner, n;
};

// Along dim 1, of a vector along dim 0. `dense` has elements and no gaps, in any order of its dimensions.
inline Neighbours neighbours_of(const char* op, const Tensor& dense, int64_t n, int64_t m) {
  const int64_t dim = dense.dim() > 1 ? 1 : 0;
  const int64_t size = dense.dim() > 0 ? dense.size(dim) : 1;
  STE_CHECK(n >= 1 && n <= m, op, ": n must be in [1, m = ", m, "], got ", n);
  STE_CHECK(size % m == 0, op, ": m must divide the size of dim ", dim, ", which is ", size, ", got ", m);
  // A dimension of size 1 may have any stride.
  const int64_t inner = size > 1 ? dense.stride(dim) : 1;
  return {dense.numel() / (m * inner), m, inner, n};
}

// Weights, the incoming gradient (of the forward: w) and the tensor to fill, all in w's memory order.
struct Pruning {
  Tensor out, w, grad;
  Neighbours groups;
};

inline Pruning prepare_sr_ste(const Tensor& w, int64_t n, int64_t m) {
  const Elementwise call(w);
  return {call.out, call.x, call.x, neighbours_of("sr_ste", call.out, n, m)};
}

inline Pruning prepare_sr_ste_backward(const Tensor& grad, const Tensor& w, int64_t n, int64_t m) {
  check_like("sr_ste_backward", "grad", grad, "w", w);
  const Elementwise call(w);
  return {call.out, call.x, in_layout_of(call.out, grad), neighbours_of("sr_ste_backward", call.out, n, m)};
}

}  // namespace ste_ops
