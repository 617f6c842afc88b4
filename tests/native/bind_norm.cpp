#include "core/clip/norm.h"

#include <stdexcept>

#include "core/clip/strided.h"
#include "native.h"

namespace ste_ops {
namespace {

template <class A, class Terms>
double total_of(Array<A> x, Terms terms) {
  double total = Terms::identity();
  for (py::ssize_t i = 0; i < x.size(); ++i) total = Terms::combine(total, double(terms.term(x.data()[i])));
  return total;
}

// The norm as a backend takes it, one element after the other.
template <class A>
double total_norm(Array<A> x, double p) {
  return visit_norm(p, [&](auto terms) {
    const double total = total_of(x, terms);
    if constexpr (terms.may_leave_range || (terms.may_leave_range_in_float64 && sizeof(A) == 8)) {
      if (left_range(total)) {
        const double largest = total_of(x, Largest{});
        const auto scaled = terms.scaled(largest);
        return has_scale(largest) ? scaled.finish(total_of(x, scaled)) : largest;
      }
    }
    return terms.finish(total);
  });
}

// (offset of each element in turn, whether it is dense, whether no element shares memory)
py::tuple walk(std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  Strided layout;
  if (!collapse(sizes.data(), strides.data(), int64_t(sizes.size()), layout)) {
    throw std::invalid_argument("too many dimensions");
  }
  int64_t numel = 1;
  for (int64_t size : sizes) numel *= size;
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < numel; ++i) offsets.push_back(layout.offset(i));
  return py::make_tuple(offsets, layout.dims == 0, never_overlaps(layout));
}

const Bindings norm("norm", [](py::module_& m) {
  m.def("total_norm", &total_norm<float>);
  m.def("total_norm", &total_norm<double>);
  m.def("clip_coefficient", &clip_coefficient);
  m.def("leaves_alone", &leaves_alone);
  m.def("clamp_float32", py::vectorize([](float x, float bound) { return clamp_magnitude(x, bound); }));
  m.def("clamp_float64", py::vectorize([](double x, double bound) { return clamp_magnitude(x, bound); }));
  m.def("clip_bound_float16", &clip_bound<Half>);
  m.def("clip_bound_bfloat16", &clip_bound<BFloat16>);
  m.def("walk", &walk);
});

}  // namespace
}  // namespace ste_ops
