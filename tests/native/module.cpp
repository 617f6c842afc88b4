#include "native.h"

std::vector<ste_ops::Bindings>& ste_ops::Bindings::all() {
  static std::vector<Bindings> list;
  return list;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  for (const ste_ops::Bindings& family : ste_ops::Bindings::all()) {
    pybind11::module_ submodule = m.def_submodule(family.name);
    family.define(submodule);
  }
}
