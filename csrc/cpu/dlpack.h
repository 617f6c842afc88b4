// What is read of DLPack 1.x, https://dmlc.github.io/dlpack/latest/c_api.html: how a library lets another one
// read its tensors without a copy. The layout is fixed for the major version. torch's own copy of the header is not for
// libraries that target its stable ABI.
#pragma once

#include <cstdint>

namespace ste_ops::dlpack {

constexpr uint32_t kMajorVersion = 1;

enum DeviceType : int32_t { kCpu = 1 };
enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

// DLTensor
struct TensorView {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};
static_assert(sizeof(TensorView) == 48, "the layout of DLTensor");

// DLPackExchangeAPI, the capsule `__dlpack_c_exchange_api__` of a tensor type.
struct ExchangeApi {
  uint32_t major_version;
  uint32_t minor_version;
  ExchangeApi* earlier;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  // Fills the view of an object of exactly this type, without taking a reference; -1 with a Python exception where it
  // has no memory to show.
  int (*view)(void* object, TensorView* out);
  void* current_work_stream;
};

}  // namespace ste_ops::dlpack
