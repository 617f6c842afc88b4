#include <stdexcept>

#include "core/sampling/resample.h"
#include "core/sampling/sum_tree.h"
#include "native.h"

namespace ste_ops {
namespace {

// The prefix sums of a node's children, given as words, and its own word.
py::tuple node_sums(Array<uint64_t> children) {
  if (children.size() != kFanout) throw std::invalid_argument("a node has sixteen children");
  Array<uint64_t> prefix(kFanout);
  uint64_t word = sum_children(children.data(), prefix.mutable_data());
  return py::make_tuple(prefix, word);
}

// The words of sixteen weights.
template <class T>
Array<uint64_t> widened(Array<bits_t<T>> weights) {
  if (weights.size() != kFanout) throw std::invalid_argument("a node has sixteen weights");
  Array<uint64_t> words(kFanout);
  widen<T>(weights.data(), words.mutable_data());
  return words;
}

// The units of positions first, first + 1, ... by steps, which must be those of each alone.
std::vector<uint64_t> position_units(uint64_t total, uint64_t count, uint64_t first, std::vector<uint64_t> random) {
  Strata strata(total, count);
  Quotient begin = strata.begin(first);
  std::vector<uint64_t> units;
  for (uint64_t bits : random) {
    if (strata.unit(begin, bits) != strata.unit(strata.begin(first + units.size()), bits)) {
      throw std::logic_error("a step differs from a division");
    }
    units.push_back(strata.unit(begin, bits));
    begin = strata.next(begin);
  }
  return units;
}

py::tuple quotient(Quotient x) { return py::make_tuple(x.whole, x.rest); }

template <class T>
void bind_words(py::module_& m, const char* name) {
  py::module_ sub = m.def_submodule(name);
  sub.def("wide", py::vectorize(&wide<T>));
  sub.def("widen", &widened<T>);
}

const Bindings trees("trees", [](py::module_& m) {
  bind_words<double>(m, "float64");
  bind_words<float>(m, "float32");
  bind_words<Half>(m, "float16");
  m.def("node_sums", &node_sums);
  m.def("position_units", &position_units);
  m.def("divide", [](uint64_t high, uint64_t low, uint64_t divisor) { return quotient(divide(high, low, divisor)); });
  m.def("copies", [](uint64_t total, uint64_t n, uint64_t mass) { return quotient(Copies(total, n).of(mass)); });
  m.def("bucket_after", [](uint64_t mass, uint64_t copied, uint64_t total, uint64_t n) {
    Bucket bucket = Bucket::after(mass, copied, Copies(total, n));
    return py::make_tuple(bucket.number, bucket.units);
  });
});

}  // namespace
}  // namespace ste_ops
