#include "core/dtype.h"
#include "native.h"

namespace ste_ops {
namespace {

// 16-bit storage types cross as their bits. py::vectorize makes each function a NumPy ufunc.
const Bindings dtype("dtype", [](py::module_& m) {
  m.def("load_float16", py::vectorize([](uint16_t bits) { return load(Half{bits}); }));
  m.def("load_bfloat16", py::vectorize([](uint16_t bits) { return load(BFloat16{bits}); }));
  m.def("store_float16", py::vectorize([](float x) { return store<Half>(x).bits; }));
  m.def("store_bfloat16", py::vectorize([](float x) { return store<BFloat16>(x).bits; }));
});

}  // namespace
}  // namespace ste_ops
