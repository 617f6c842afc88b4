// A few draws past the dispatcher: to call an operator takes several times as long as they do.
#include "cpu/sampling/python_draws.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "cpu/python_tensor.h"
#include "cpu/sampling/repeat_rows.h"

namespace ste_ops {
namespace {

bool is_of(const dlpack::TensorView& tensor, dlpack::TypeCode code, int bits) {
  return tensor.dtype.code == code && tensor.dtype.bits == bits;
}

// The tensors of a call, as they lie in memory.
struct SmallDraws {
  dlpack::TensorView weights, seed, out;

  bool read(const TensorReader& reader, PyObject* of_weights, PyObject* of_seed, PyObject* of_out) {
    if (!reader.works() || !reader.read(of_weights, weights) || !reader.read(of_seed, seed)) return false;
    return reader.read(of_out, out) && fits();
  }
  int64_t rows() const { return weights.ndim == 2 ? weights.shape[0] : 1; }
  int64_t n() const { return weights.shape[weights.ndim - 1]; }
  int64_t num_samples() const { return out.shape[out.ndim - 1]; }

  template <class T>
  bool draw() const {
    std::vector<int64_t> states(size_t(rows()), 0);
    const RepeatRows<T> repeat{
        reinterpret_cast<const bits_t<T>*>(memory_of(weights)),
        *reinterpret_cast<const uint64_t*>(memory_of(seed)),
        n(),
        num_samples(),
        reinterpret_cast<int64_t*>(memory_of(out)),
        states.data()};
    repeat(0, rows());
    return std::all_of(states.begin(), states.end(), [](int64_t state) { return state > 0; });
  }

  bool draw_any() const {
    if (is_of(weights, dlpack::kFloat, 32)) return draw<float>();
    if (is_of(weights, dlpack::kFloat, 64)) return draw<double>();
    if (is_of(weights, dlpack::kFloat, 16)) return draw<Half>();
    return is_of(weights, dlpack::kBfloat, 16) && draw<BFloat16>();
  }

 private:
  bool fits() const {
    if (weights.ndim < 1 || weights.ndim > 2 || out.ndim != weights.ndim || seed.ndim != 1 || seed.shape[0] != 1) {
      return false;
    }
    if (n() < 1 || n() > kMaxCategories || num_samples() < 1 || (out.ndim == 2 && out.shape[0] != rows())) return false;
    return is_of(seed, dlpack::kInt, 64) && is_of(out, dlpack::kInt, 64) && is_row_major(weights) && is_row_major(out);
  }
};

}  // namespace

PyObject* draw_with_replacement(PyObject*, PyObject* arguments) {
  static const TensorReader reader;
  PyObject *weights, *seed, *out;
  if (!PyArg_UnpackTuple(arguments, "draw_with_replacement", 3, 3, &weights, &seed, &out)) return nullptr;
  try {
    SmallDraws call;
    if (call.read(reader, weights, seed, out) && call.draw_any()) Py_RETURN_TRUE;
    PyErr_Clear();
    Py_RETURN_FALSE;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

}  // namespace ste_ops
