// What both backends of N:M sparsity do around their loops: checks and layout.
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
  STD_TORCH_CHECK(n >= 1 && n <= m, op, ": n must be in [1, m = ", m, "], got ", n);
  STD_TORCH_CHECK(size % m == 0, op, ": m must divide the size of dim ", dim, ", which is ", size, ", got ", m);
  // A dimension of size 1 may have any stride.
  const int64_t inner = size > 1 ? dense.stride(dim) : 1;
  return {dense.numel() / (m * inner), m, inner, n};
}

// `loop(Type<T>, w, out, Neighbours)` writes every element of out, in w's memory order.
template <class Loop>
Tensor sr_ste(const Tensor& w, int64_t n, int64_t m, Loop&& loop) {
  Tensor out = new_like(w);
  Tensor dense = in_layout_of(out, w);
  const Neighbours groups = neighbours_of("sr_ste", out, n, m);
  dispatch_floating("sr_ste", "w", w, [&](auto type) {
    if (w.numel() > 0) loop(type, dense.const_data_ptr(), out.mutable_data_ptr(), groups);
  });
  return out;
}

// `loop(Type<T>, w, grad, out, Neighbours)` likewise. The result has w's layout, whatever grad's.
template <class Loop>
Tensor sr_ste_backward(const Tensor& grad, const Tensor& w, int64_t n, int64_t m, Loop&& loop) {
  constexpr const char* op = "sr_ste_backward";
  check_like(op, "grad", grad, "w", w);
  Tensor out = new_like(w);
  Tensor dense = in_layout_of(out, w), dense_grad = in_layout_of(out, grad);
  const Neighbours groups = neighbours_of(op, out, n, m);
  dispatch_floating(op, "w", w, [&](auto type) {
    if (w.numel() > 0) {
      loop(type, dense.const_data_ptr(), dense_grad.const_data_ptr(), out.mutable_data_ptr(), groups);
    }
  });
  return out;
}

}  // namespace ste_ops
