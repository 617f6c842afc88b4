// New tensors, and the order of elements in memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "ops/dispatch.h"

namespace ste_ops {

using torch::headeronly::IntHeaderOnlyArrayRef;

// Allocates through the C shim: a tenth of a call of an aten operator through the dispatcher, which is what a small
// tensor's time is made of.
inline Tensor empty_strided(
    IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype, const Tensor& like) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(), int32_t(dtype), device_type, like.get_device_index(),
      &handle));
  return Tensor(handle);
}

inline Tensor empty_vector(int64_t numel, ScalarType dtype, const Tensor& like) {
  const int64_t one = 1;
  return empty_strided({&numel, 1}, {&one, 1}, dtype, like);
}

// As torch.empty_like: x's strides where x is dense, else dense in the order of x's strides.
inline Tensor new_like(const Tensor& x) {
  return x.is_contiguous() ? empty_strided(x.sizes(), x.strides(), x.scalar_type(), x) : torch::stable::empty_like(x);
}

inline Tensor row_major(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// A dense tensor in `like`'s memory order with x's values: x itself where it already is one.
inline Tensor in_layout_of(const Tensor& like, const Tensor& x) {
  if (x.numel() == 0 || same_strides(x, like)) return x;
  Tensor copy = torch::stable::empty_like(like);
  return torch::stable::copy_(copy, x);
}

// Whether x has no gaps and no element twice, so that new_like gives it x's strides.
inline bool is_dense(const Tensor& x) {
  if (x.is_contiguous()) return true;
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) != 1) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return x.stride(a) < x.stride(b); });
  int64_t stride = 1;
  for (const int64_t d : dims) {
    if (x.stride(d) != stride) return false;
    stride *= x.size(d);
  }
  return true;
}

// x without gaps, for an operator that reads it alone.
inline Tensor dense_of(const Tensor& x) { return is_dense(x) ? x : in_layout_of(new_like(x), x); }

// What an element-wise operator reads and writes: x without gaps, and a new tensor like it, in one memory order.
struct Elementwise {
  Tensor out, x;
  explicit Elementwise(const Tensor& given) : out(new_like(given)), x(in_layout_of(out, given)) {}
};

// Row-major, of the first `dims` sizes of x.
inline Tensor new_row_major(const Tensor& x, int64_t dims, ScalarType dtype) {
  std::vector<int64_t> sizes(dims), strides(dims);
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    sizes[d] = x.size(d);
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided({sizes.data(), size_t(dims)}, {strides.data(), size_t(dims)}, dtype, x);
}

// A row-major result in the layout that an operator promises: that of x where x is dense.
inline Tensor in_layout_of_input(const Tensor& x, const Tensor& result) {
  if (x.is_contiguous()) return result;
  Tensor out = torch::stable::empty_like(x);
  return torch::stable::copy_(out, result);
}

}  // namespace ste_ops
