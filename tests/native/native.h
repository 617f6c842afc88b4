// What every bind_<family>.cpp of the unit-test module stands on.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

namespace ste_ops {

namespace py = pybind11;

// A C-contiguous array; values of another dtype are refused rather than converted.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Submodule `name`, filled by `define`. One static object of this type in each bind_<family>.cpp.
struct Bindings {
  const char* name;
  void (*define)(py::module_&);

  Bindings(const char* name, void (*define)(py::module_&)) : name(name), define(define) { all().push_back(*this); }

  static std::vector<Bindings>& all();
};

}  // namespace ste_ops
