// The units of adaptive clipping, of weights and of their gradients: a unit is what belongs to one index of the first
// dimension, and all of a tensor with fewer than two dimensions.
#pragma once

#include "ops/clip/norm.h"

namespace ste_ops {

struct Units {
  char* data;
  int64_t length;  // elements of a unit
  int64_t stride;  // elements from one unit to the next
  Storage storage;
  Strided layout;  // of one unit; no dimension where its memory is dense

  TensorData unit(int64_t index) const {
    return {data + index * stride * bytes_of_element(storage), length, layout.dims ? &layout : nullptr, storage};
  }
};

struct WeightAndGradient {
  int64_t count;  // of units
  Units weight, grad;
  int64_t numel() const { return count * grad.length; }
  bool dense() const { return weight.layout.dims == 0 && grad.layout.dims == 0; }
};

inline int64_t dims_of(AtenTensorHandle tensor) {
  int64_t dims;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dims));
  return dims;
}

inline Units units_of(const char* op, const TensorData& tensor, AtenTensorHandle handle) {
  int64_t *sizes, *strides, dims = dims_of(handle);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  const int64_t outer = dims > 1 ? 1 : 0;
  Units units{static_cast<char*>(tensor.data), tensor.numel, 0, tensor.storage, {}};
  if (outer) {
    units.length /= sizes[0];
    units.stride = strides[0];
  }
  STE_CHECK(
      collapse(sizes + outer, strides + outer, dims - outer, units.layout), op, ": a unit has more than ",
      Strided::kMaxDims, " dimensions that are not contiguous with each other");
  return units;
}

// The pairs of two lists of equal shapes; a gradient that is there twice counts once.
inline std::vector<WeightAndGradient> pairs_of(const char* op, const TensorList& weights, const TensorList& grads) {
  STE_CHECK(
      weights.places.size() == grads.places.size(), op, ": parameters and gradients must be as many, got ",
      weights.places.size(), " and ", grads.places.size());
  STE_CHECK(
      weights.device_type == grads.device_type && weights.device_index == grads.device_index, op,
      ": parameters and gradients must be on one device");
  std::vector<WeightAndGradient> pairs;
  std::vector<bool> seen(grads.items.size());
  for (size_t i = 0; i < grads.places.size(); ++i) {
    const AtenTensorHandle weight = weights.handle(i), grad = grads.handle(i);
    int64_t *expected, *sizes, dims = dims_of(weight);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(weight, &expected));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(grad, &sizes));
    STE_CHECK(
        dims == dims_of(grad) && std::equal(sizes, sizes + dims, expected), op, ": the gradient at index ", i,
        " must have its parameter's shape");
    const int32_t place = grads.places[i];
    if (place < 0 || seen[place]) continue;
    seen[place] = true;
    pairs.push_back(
        {dims > 1 ? sizes[0] : 1, units_of(op, weights.items[weights.places[i]], weight),
         units_of(op, grads.items[place], grad)});
  }
  return pairs;
}

// clip_grad_agc_(parameters, grads, clip_factor, eps)
struct ClipGradAgc {
  TensorList weights, grads;
  double clip_factor, eps;
  std::vector<WeightAndGradient> pairs;

  ClipGradAgc(StableIValue* stack, Placed placed)
      : weights(kOp, stack[0], Access::kRead, placed),
        grads(kOp, stack[1], Access::kWrite, placed),
        clip_factor(to<double>(stack[2])),
        eps(to<double>(stack[3])),
        pairs(pairs_of(kOp, weights, grads)) {}

 private:
  static constexpr const char* kOp = "clip_grad_agc_";
};

}  // namespace ste_ops
