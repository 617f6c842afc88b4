// Tensors of Python read where they lie, past the dispatcher.
#pragma once

#include "cpu/dlpack.h"
#include "cpu/python.h"

namespace ste_ops {

// How torch.Tensor lets its metadata be read, by DLPack's exchange API.
class TensorReader {
 public:
  TensorReader() {
    if (PyObject* torch = PyImport_ImportModule("torch")) {
      type_ = PyObject_GetAttrString(torch, "Tensor");
      Py_DECREF(torch);
    }
    if (PyObject* capsule = type_ ? PyObject_GetAttrString(type_, "__dlpack_c_exchange_api__") : nullptr) {
      // The table lives as long as the process.
      const auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
      if (api != nullptr && api->major_version == dlpack::kMajorVersion) view_ = api->view;
      Py_DECREF(capsule);
    }
    PyErr_Clear();
  }

  // False where this torch has another major version of DLPack.
  bool works() const { return view_ != nullptr; }

  // Whether the object is a plain dense tensor on the CPU, which `out` then shows. A subclass may be more than its
  // memory. A Python exception may be set where it is none.
  bool read(PyObject* object, dlpack::TensorView& out) const {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != type_ || view_(object, &out) != 0) return false;
    return out.device_type == dlpack::kCpu && out.dtype.lanes == 1;
  }

 private:
  PyObject* type_ = nullptr;
  int (*view_)(void*, dlpack::TensorView*) = nullptr;
};

inline bool is_row_major(const dlpack::TensorView& tensor) {
  int64_t stride = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != stride) return false;
    stride *= tensor.shape[d];
  }
  return true;
}

inline char* memory_of(const dlpack::TensorView& tensor) {
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

}  // namespace ste_ops
