#include "core/quantize/scaled.h"

#include "core/quantize/sparse.h"
#include "native.h"

namespace ste_ops {
namespace {

const Bindings scaled("scaled", [](py::module_& m) {
  m.def("tanh_float32", py::vectorize([](float x) { return portable_tanh(x); }));
  m.def("tanh_float64", py::vectorize([](double x) { return portable_tanh(x); }));
  m.def("sign_float32", py::vectorize([](float w, float scale) { return ScaledSign()(w, scale); }));
  m.def("bitnet_weight_float32", py::vectorize([](float w, float scale) { return BitNetWeight()(w, scale); }));
  m.def("bitnet_activation_float32", py::vectorize([](float x, float step, double levels) {
          return BitNetActivation{levels}(x, step);
        }));
  m.def("xnor_term_float32", py::vectorize([](float grad, float w) { return xnor_term(grad, w); }));
  m.def("xnor_term_float64", py::vectorize([](double grad, double w) { return xnor_term(grad, w); }));
  m.def("magnitude_key_float32", py::vectorize([](float x) { return magnitude_key(x); }));
  m.def("magnitude_key_float16", py::vectorize([](uint16_t bits) { return magnitude_key(Half{bits}); }));
  m.def("magnitude_key_bfloat16", py::vectorize([](uint16_t bits) { return magnitude_key(BFloat16{bits}); }));
});

}  // namespace
}  // namespace ste_ops
