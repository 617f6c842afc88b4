// The samples of a batch: the gradient of each, and the sums that they are added to.
#pragma once

#include "ops/clip/norm.h"

namespace ste_ops {

// One tensor [batch, ...] and where the sum of its clipped samples is added.
struct Samples {
  const void* data;
  void* sum;
  int64_t length;  // elements of a sample
  Storage storage;

  TensorData sample(int64_t index) const {
    const char* begin = static_cast<const char*>(data) + index * length * bytes_of_element(storage);
    return {const_cast<char*>(begin), length, nullptr, storage};
  }
  TensorData total() const { return {sum, length, nullptr, storage}; }
};

// clip_per_sample_(grad_samples, sums, max_norm)
class ClipPerSample {
 public:
  ClipPerSample(StableIValue* stack, Placed placed)
      : max_norm(to<double>(stack[2])),
        grads_(kOp, stack[0], Access::kRead, placed),
        sums_(kOp, stack[1], Access::kWrite, placed) {
    STE_CHECK(
        grads_.places.size() == sums_.places.size(), kOp, ": sums must be as many as grad_samples, got ",
        sums_.places.size(), " for ", grads_.places.size());
    STE_CHECK(
        grads_.device_type == sums_.device_type && grads_.device_index == sums_.device_index, kOp,
        ": sums must be on the device of grad_samples");
    std::vector<bool> seen(sums_.items.size());
    for (size_t i = 0; i < grads_.places.size(); ++i) {
      const int64_t own = batch_of(i);
      STE_CHECK(
          i == 0 || own == batch, kOp, ": all grad_samples must have the same number of samples, got ", batch,
          " at index 0 and ", own, " at index ", i);
      batch = own;
      if (grads_.places[i] >= 0) add(i, seen);
    }
  }

  double max_norm;
  std::vector<Samples> items;
  int64_t batch = 0;

  bool has_float64() const { return grads_.has_float64; }
  // One norm for each sample.
  Tensor empty_norms() const { return empty_vector(batch, grads_.norm_type(), grads_.any()); }

 private:
  static constexpr const char* kOp = "clip_per_sample_";

  int64_t batch_of(size_t index) const {
    int64_t dims, *sizes;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(grads_.handle(index), &dims));
    STE_CHECK(dims > 0, kOp, ": grad_samples must have a dimension of samples, got a 0-d tensor at index ", index);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(grads_.handle(index), &sizes));
    return sizes[0];
  }

  void add(size_t index, std::vector<bool>& seen) {
    const TensorData& grad = grads_.items[grads_.places[index]];
    const int32_t place = sums_.places[index];
    STE_CHECK(
        place >= 0 && sums_.items[place].numel == grad.numel / batch && sums_.items[place].storage == grad.storage, kOp,
        ": the sum at index ", index, " must have a sample's shape and dtype");
    bool contiguous[2];
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(grads_.handle(index), &contiguous[0]));
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(sums_.handle(index), &contiguous[1]));
    STE_CHECK(
        contiguous[0] && contiguous[1], kOp, ": grad_samples and sums must be contiguous, got others at index ", index);
    STE_CHECK(!seen[place], kOp, ": sums must be different tensors, got one twice at index ", index);
    seen[place] = true;
    items.push_back({grad.data, sums_.items[place].data, grad.numel / batch, grad.storage});
  }

  TensorList grads_, sums_;
};

}  // namespace ste_ops
