// Tensor lists, which is what clipping gets: where each tensor's memory is, how much, and of what type.
#pragma once

#include <cstdint>
#include <deque>
#include <type_traits>
#include <vector>

#include "core/clip/strided.h"
#include "ops/layout.h"

namespace ste_ops {

enum class Storage : uint8_t { kFloat, kDouble, kHalf, kBFloat16 };

// Calls f with a value of the C++ type.
template <class F>
auto visit_storage(Storage storage, F&& f) {
  switch (storage) {
    case Storage::kFloat: return f(Type<float>{});
    case Storage::kDouble: return f(Type<double>{});
    case Storage::kHalf: return f(Type<Half>{});
    default: return f(Type<BFloat16>{});
  }
}

template <class T>
constexpr Storage storage_of_type() {
  if (std::is_same<T, float>::value) return Storage::kFloat;
  if (std::is_same<T, double>::value) return Storage::kDouble;
  return std::is_same<T, Half>::value ? Storage::kHalf : Storage::kBFloat16;
}

inline int64_t bytes_of_element(Storage storage) {
  return visit_storage(storage, [](auto type) { return int64_t(sizeof(typename decltype(type)::type)); });
}

// The memory of a tensor, or of a part of one: a row, a unit, a sample.
struct TensorData {
  void* data;
  int64_t numel;
  const Strided* layout;  // null where the memory is dense
  Storage storage;

  bool operator==(const TensorData& other) const {
    if (data != other.data || numel != other.numel || storage != other.storage) return false;
    return layout == other.layout || (layout && other.layout && *layout == *other.layout);
  }
};

enum class Access { kRead, kWrite };

// Whether the kernel was chosen by some tensor of the list rather than by all of them. A list that reaches a CPU kernel
// lies on the CPU: one tensor elsewhere would have led elsewhere.
enum class Placed { kOnCpu, kAnywhere };

inline Storage storage_of(const char* op, size_t index, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return Storage::kFloat;
    case ScalarType::Double: return Storage::kDouble;
    case ScalarType::Half: return Storage::kHalf;
    case ScalarType::BFloat16: return Storage::kBFloat16;
    default:
      STE_CHECK(
          false, op, ": gradients must be float64, float32, bfloat16 or float16, got ",
          torch::headeronly::toString(dtype), " at index ", index);
  }
}

// Tensors without repetition: one that comes again (the same memory, type and layout) is kept once.
class DistinctTensors {
 public:
  DistinctTensors() = default;
  DistinctTensors(const DistinctTensors&) = delete;
  DistinctTensors& operator=(const DistinctTensors&) = delete;

  std::vector<TensorData> items;
  // Of each tensor of the list its place in `items`, -1 where it has no element.
  std::vector<int32_t> places;
  int64_t numel = 0;
  bool has_float64 = false;

 protected:
  void reserve(size_t count) {
    items.reserve(count);
    places.reserve(count);
    size_t size = 16;
    while (size < 2 * count) size *= 2;
    place_of_.assign(size, -1);
  }

  void add(TensorData item) {
    has_float64 |= item.storage == Storage::kDouble;
    if (item.numel == 0) {
      places.push_back(-1);
      return;
    }
    const int32_t place = find_or_insert(item);
    places.push_back(place);
    if (place < int32_t(items.size())) return;
    // Member by member: a copy of a structure that was just written waits for the memory.
    items.push_back({item.data, item.numel, item.layout, item.storage});
    numel += item.numel;
  }

  const Strided* keep(const Strided& layout) {
    layouts_.push_back(layout);
    return &layouts_.back();
  }

 private:
  // The place of the same tensor, or of this one where there is none. Open addressing on the data pointer.
  int32_t find_or_insert(const TensorData& item) {
    size_t mask = place_of_.size() - 1;
    size_t slot = (reinterpret_cast<uintptr_t>(item.data) >> 4) * 0x9e3779b97f4a7c15ull >> 32;
    for (;; ++slot) {
      int32_t& place = place_of_[slot & mask];
      if (place < 0) {
        place = int32_t(items.size());
        return place;
      }
      if (items[place] == item) return place;
    }
  }

  std::vector<int32_t> place_of_;
  std::deque<Strided> layouts_;  // a deque does not move its elements
};

// An operator's list argument, which it takes over, reading each tensor's metadata once. Everything is checked before a
// kernel runs, so that no list is written in part.
//
// It walks the handles itself: a std::vector of torch::stable::Tensor takes a second allocation and an atomic count for
// each tensor, which for a thousand small tensors is a third of the whole call.
class TensorList : public DistinctTensors {
 public:
  TensorList(const char* op, StableIValue list, Access access, Placed placed) : handles_(list) {
    const std::vector<AtenTensorHandle>& tensors = handles_.owned;
    STE_CHECK(!tensors.empty(), op, ": the list of gradients is empty");
    reserve(tensors.size());
    device_of(tensors[0], device_type, device_index);
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (placed == Placed::kAnywhere) check_device(op, tensors[i], i);
      add(read_tensor(op, tensors[i], i, access));
    }
  }

  int32_t device_type = 0;
  int32_t device_index = 0;

  // The tensor of the list itself.
  AtenTensorHandle handle(size_t index) const { return handles_.owned[index]; }

  // A tensor on the list's device, to allocate like.
  Tensor any() const {
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handles_.owned[0], &handle));
    return Tensor(handle);
  }

  // Float64 as soon as one tensor is; float32 for halves too, where torch would round the norm to their 11 bits.
  ScalarType norm_type() const { return has_float64 ? ScalarType::Double : ScalarType::Float; }

 private:
  struct Handles {
    explicit Handles(StableIValue value) : list(torch::stable::detail::to<StableListHandle>(value)) {
      size_t size = 0;
      TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
      owned.reserve(size);
      for (size_t i = 0; i < size; ++i) {
        StableIValue item;
        TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &item));
        owned.push_back(torch::stable::detail::to<AtenTensorHandle>(item));
      }
    }
    ~Handles() {
      for (AtenTensorHandle handle : owned) aoti_torch_delete_tensor_object(handle);
      torch_delete_list(list);
    }
    Handles(const Handles&) = delete;
    Handles& operator=(const Handles&) = delete;

    StableListHandle list;
    std::vector<AtenTensorHandle> owned;
  };

  static void device_of(AtenTensorHandle tensor, int32_t& type, int32_t& index) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &index));
  }

  static void* data_of(AtenTensorHandle tensor, Access access) {
    void* data = nullptr;
    if (access == Access::kWrite) {
      TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor, &data));
    } else {
      const void* read_only = nullptr;
      TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &read_only));
      data = const_cast<void*>(read_only);
    }
    return data;
  }

  void check_device(const char* op, AtenTensorHandle tensor, size_t index) const {
    int32_t type, device;
    device_of(tensor, type, device);
    STE_CHECK(
        type == device_type && device == device_index, op,
        ": gradients of one call must be on one device, got another one at index ", index);
  }

  TensorData read_tensor(const char* op, AtenTensorHandle tensor, size_t index, Access access) {
    int32_t dtype;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    TensorData item{nullptr, 0, nullptr, storage_of(op, index, ScalarType(dtype))};
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &item.numel));
    if (item.numel == 0) return item;
    item.data = data_of(tensor, access);
    bool contiguous;
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &contiguous));
    if (!contiguous) item.layout = layout_of(op, tensor, index, access);
    return item;
  }

  const Strided* layout_of(const char* op, AtenTensorHandle tensor, size_t index, Access access) {
    int64_t *sizes, *strides, dims;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dims));
    Strided layout;
    STE_CHECK(
        collapse(sizes, strides, dims, layout), op, ": the gradient at index ", index, " has more than ",
        Strided::kMaxDims, " dimensions that are not contiguous with each other");
    if (layout.dims == 0) return nullptr;
    STE_CHECK(
        access == Access::kRead || never_overlaps(layout), op, ": the gradient at index ", index,
        " cannot be written in place, because several of its elements share memory (an expanded tensor?); "
        "clone() it first");
    return keep(layout);
  }

  Handles handles_;
};

}  // namespace ste_ops
