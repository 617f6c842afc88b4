// clip_grad_norm_ on a Python list, past the dispatcher: of a thousand small gradients five sixths of the operator's
// time go into boxing the list and unboxing it again. DLPack's exchange API reads a tensor's metadata where it lies.
// One loop asks each parameter for its gradient and reads it, while its lines are in the cache.
#include "cpu/clip/python_list.h"

#include <exception>
#include <optional>
#include <utility>

#include "cpu/clip/norm.h"
#include "cpu/clip/scale.h"
#include "cpu/python_tensor.h"

namespace ste_ops {
namespace {

std::optional<Storage> storage_of(dlpack::DataType dtype) {
  if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return Storage::kBFloat16;
  if (dtype.code != dlpack::kFloat) return std::nullopt;
  switch (dtype.bits) {
    case 16: return Storage::kHalf;
    case 32: return Storage::kFloat;
    case 64: return Storage::kDouble;
    default: return std::nullopt;
  }
}

class PythonList : public DistinctTensors {
 public:
  PythonList() = default;
  ~PythonList() { Py_XDECREF(held_); }

  // False where the operator has to look: it takes other tensors too, and explains what cannot be clipped.
  bool read(PyObject* parameters, bool may_lack) {
    static const TensorReader reader;
    static PyObject* const name = PyUnicode_InternFromString("grad");
    if (!reader.works() || !PyList_Check(parameters)) return false;
    const Py_ssize_t count = PyList_Size(parameters);
    reserve(size_t(count));
    held_ = PyList_New(0);
    for (Py_ssize_t i = 0; held_ != nullptr && i < count; ++i) {
      PyObject* parameter = PyList_GetItem(parameters, i);
      if (parameter == nullptr) return false;
      Py_INCREF(parameter);  // the attribute may be Python, and drop it from the list
      PyObject* grad = PyObject_GetAttr(parameter, name);
      Py_DECREF(parameter);
      if (grad == nullptr) return false;
      const bool lacks = grad == Py_None;
      const bool held = lacks || PyList_Append(held_, grad) == 0;
      Py_DECREF(grad);
      if (!held || !(lacks ? may_lack : add_tensor(reader, grad))) return false;
    }
    return held_ != nullptr && !places.empty();
  }

  // The list that keeps the gradients alive; the caller's own reference.
  PyObject* release() { return std::exchange(held_, nullptr); }

 private:
  bool add_tensor(const TensorReader& reader, PyObject* grad) {
    dlpack::TensorView tensor;
    if (!reader.read(grad, tensor)) return false;
    const std::optional<Storage> storage = storage_of(tensor.dtype);
    if (!storage) return false;
    TensorData item{memory_of(tensor), 1, nullptr, *storage};
    for (int d = 0; d < tensor.ndim; ++d) item.numel *= tensor.shape[d];
    if (item.numel != 0) {
      if (tensor.data == nullptr) return false;
      if (!is_row_major(tensor)) {
        Strided layout;
        if (!collapse(tensor.shape, tensor.strides, tensor.ndim, layout) || !never_overlaps(layout)) return false;
        if (layout.dims > 0) item.layout = keep(layout);
      }
    }
    add(item);
    return true;
  }

  PyObject* held_ = nullptr;
};

// Lets other Python threads run for as long as it lives.
struct WithoutLock {
  PyThreadState* state = PyEval_SaveThread();
  WithoutLock() = default;
  ~WithoutLock() { PyEval_RestoreThread(state); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;
};

double clip(const DistinctTensors& grads, double max_norm, double p, NonFinite nonfinite) {
  const WithoutLock unlocked;
  const Blocks blocks(grads.items);
  double norm = norm_of_blocks(blocks, p, grads.has_float64);
  if (!grads.has_float64) norm = float(norm);  // as the operator returns it, and scales by it
  rewrite(blocks, scaling(norm, max_norm, nonfinite));
  return norm;
}

}  // namespace

PyObject* clip_grad_norm_list(PyObject*, PyObject* arguments) {
  PyObject* parameters;
  double max_norm, p;
  int nonfinite, may_lack;
  if (!PyArg_ParseTuple(arguments, "Oddii", &parameters, &max_norm, &p, &nonfinite, &may_lack)) return nullptr;
  try {
    PythonList grads;
    if (!grads.read(parameters, may_lack != 0)) {
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    const double norm = clip(grads, max_norm, p, NonFinite(nonfinite));
    return Py_BuildValue("dNN", norm, PyBool_FromLong(grads.has_float64), grads.release());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

}  // namespace ste_ops
