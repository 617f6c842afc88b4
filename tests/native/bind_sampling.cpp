#include <algorithm>
#include <stdexcept>

#include "core/sampling/alias.h"
#include "core/sampling/bernoulli.h"
#include "core/sampling/exponential.h"
#include "core/sampling/inverse_cdf.h"
#include "core/sampling/philox.h"
#include "native.h"

namespace ste_ops {
namespace {

std::vector<uint32_t> philox_words(std::vector<uint32_t> counter, uint64_t key) {
  if (counter.size() != 4) throw std::invalid_argument("a counter has four words");
  Random128 r = philox({{counter[0], counter[1], counter[2], counter[3]}}, key);
  return {r.word, r.word + 4};
}

py::tuple philox_blocks(uint64_t seed, uint64_t stream, uint64_t first) {
  RandomBlock<64> block;
  philox_block(seed, stream, first, block);
  return py::make_tuple(Array<uint64_t>(64, block.low), Array<uint64_t>(64, block.high));
}

// The bits of a weight of each dtype as an integer, scaled by 2^exponent.
template <class T>
void bind_mass(py::module_& m, const char* name) {
  py::module_ sub = m.def_submodule(name);
  sub.def("mass", py::vectorize([](bits_t<T> x, int64_t exponent) { return mass<T>(x, exponent); }));
  sub.def("coarse_mass", py::vectorize([](bits_t<T> x, int64_t exponent) { return coarse_mass<T>(x, exponent); }));
  sub.def("integer_mass", py::vectorize([](bits_t<T> x, int64_t exponent) { return integer_mass<T>(x, exponent); }));
  sub.def("is_integer", py::vectorize([](bits_t<T> x, int64_t exponent) {
            return is_integer(scaled<T>(magnitude<T>(x)), exponent);
          }));
  sub.def("is_weight", py::vectorize([](bits_t<T> x) { return is_weight<T>(x); }));
  sub.def("is_probability", py::vectorize([](bits_t<T> x) { return is_probability<T>(x); }));
  sub.def("bernoulli", py::vectorize([](bits_t<T> p, uint64_t random) { return bernoulli<T>(p, random); }));
  sub.def("coarse_exponent", &coarse_exponent<T>);
}

// A whole table from masses, merged in stretches of `steps`.
Array<uint64_t> alias_entries(Array<uint64_t> masses, int64_t steps) {
  int64_t n = masses.size(), heavies = 0;
  std::vector<uint64_t> padded_masses(n);
  uint64_t total = 0, prefix = 0;
  for (int64_t i = 0; i < n; ++i) total += masses.data()[i];
  Columns columns = columns_of(total, n);
  for (int64_t i = 0; i < n; ++i) {
    uint64_t next = prefix + masses.data()[i];
    padded_masses[i] = padded(next, columns.padding) - padded(prefix, columns.padding);
    heavies += padded_masses[i] > columns.capacity;
    prefix = next;
  }
  std::vector<uint64_t> bounds(n + 2);
  std::vector<int64_t> items(n + 1);
  uint64_t lacked = 0, exceeded = 0;
  int64_t before = 0;
  prefix = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (lacked_before(i, prefix, exceeded, columns) != lacked) throw std::logic_error("lacked_before is wrong");
    AliasPlace place(padded_masses[i], n - heavies, i, before, lacked, exceeded, columns.capacity);
    bounds.at(place.bound) = place.value;
    items.at(place.item) = i;
    prefix += masses.data()[i];
    before += padded_masses[i] > columns.capacity;
    lacked += lacks(padded_masses[i], columns.capacity);
    exceeded += exceeds(padded_masses[i], columns.capacity);
  }
  bounds[n - heavies] = lacked;
  bounds[n + 1] = AliasMerge<int64_t>::kEnd;
  Array<uint64_t> table(n);
  for (int64_t begin = 0; begin < n; begin += steps) {
    AliasMerge<int64_t> merge(bounds.data(), items.data(), n, heavies, columns.capacity);
    merge.seek(begin);
    for (int64_t step = begin; step < std::min(begin + steps, n); ++step) merge.complete_column(table.mutable_data());
  }
  return table;
}

const Bindings sampling("sampling", [](py::module_& m) {
  m.def("philox", &philox_words);
  m.def("philox_block", &philox_blocks);
  bind_mass<double>(m, "float64");
  bind_mass<float>(m, "float32");
  bind_mass<BFloat16>(m, "bfloat16");
  bind_mass<Half>(m, "float16");
  m.def("bit_width", py::vectorize(&bit_width));
  m.def("multiply_high", py::vectorize(&multiply_high));
  m.def("mass_exponent", py::overload_cast<int64_t, uint64_t, int64_t>(&mass_exponent));
  m.def("columns_of", [](uint64_t total, int64_t n) {
    Columns columns = columns_of(total, n);
    return py::make_tuple(columns.capacity, columns.padding);
  });
  m.def("padded", &padded);
  m.def("uniform_below", py::vectorize([](uint64_t low, uint64_t high, uint64_t total) {
          return uniform_below({{uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)}}, total);
        }));
  m.def("portable_log", py::vectorize(&portable_log));
  m.def("exponential", py::vectorize(&exponential));
  m.def("exponential_key", py::vectorize([](double weight, uint64_t random) {
          return exponential_key<double>(bit_cast<uint64_t>(weight), random);
        }));
  m.def("alias_entries", &alias_entries);
});

}  // namespace
}  // namespace ste_ops
