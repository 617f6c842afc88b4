#include "core/norm.h"

#include <stdexcept>

#include "core/strided.h"
#include "native.h"

namespace ste_ops {
namespace {

// The norm as a backend takes it, one element after the other.
template <class A>
double total_norm(Array<A> x, double p, bool float64) {
  auto total = [&](auto terms) {
    auto state = decltype(terms)::identity();
    for (py::ssize_t i = 0; i < x.size(); ++i) state = terms.combine(state, double(terms.term(x.data()[i])));
    return state;
  };
  const Norm norm = norm_of(p);
  double first = visit_norm(norm, total);
  if (!may_leave_range(norm, float64) || !left_range(first)) return finish(norm, first);
  double largest = total(Maximum{});
  return finish_scaled(norm, largest, has_scale(largest) ? total(Powers(norm.p, largest)) : 0);
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
  m.def("total_norm", [](Array<float> x, double p) { return total_norm(x, p, false); });
  m.def("total_norm", [](Array<double> x, double p) { return total_norm(x, p, true); });
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
