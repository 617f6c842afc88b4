#include <stdexcept>
#include <string>

#include "core/binarize/binarizers.h"
#include "core/binarize/surrogate.h"
#include "core/bitmask.h"
#include "core/math.h"
#include "core/ordered.h"
#include "native.h"

namespace ste_ops {
namespace {

template <size_t... I>
std::vector<std::string> names(std::index_sequence<I...>) {
  return {std::tuple_element_t<I, Surrogates>::name...};
}

// For each element whether the gradient passes.
template <class A>
py::array_t<bool> passes(int64_t number, double a, double b, Array<A> x) {
  py::array_t<bool> result(x.size());
  bool found = visit_surrogate(number, a, b, [&](auto surrogate) {
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      if constexpr (surrogate.saves == Saves::mask) {
        result.mutable_data()[i] = surrogate.passes(x.data()[i]);
      } else {
        result.mutable_data()[i] = true;
      }
    }
  });
  if (!found) throw std::invalid_argument("no surrogate of that number");
  return result;
}

// The same for the bits of a 16-bit type, which the CPU loops compare as integers.
template <class T>
py::array_t<bool> passes16(int64_t number, double a, double b, Array<uint16_t> x) {
  py::array_t<bool> result(x.size());
  visit_surrogate(number, a, b, [&](auto surrogate) {
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      if constexpr (surrogate.saves == Saves::mask) {
        result.mutable_data()[i] = surrogate.passes(compare(T{x.data()[i]}));
      }
    }
  });
  return result;
}

// -1, 0 or 1.
template <class Binarizer, class A>
int level(const Binarizer& binarizer, A x) {
  return int(binarizer.above(x)) - int(binarizer.below(x));
}

template <class T>
uint16_t bits16(uint16_t bits) {
  return binarized_bits(Ternary{0.5}, T{bits}, compare(T{bits}));
}

// Bit k says whether x compares true with the constant t: >, >=, <, <=, and the same four with -t.
template <class T>
int comparisons(uint16_t bits, float t) {
  Ordered<T> x(T{bits}), bound(t), negative = -bound;
  return (x > bound) | (x >= bound) << 1 | (x < bound) << 2 | (x <= bound) << 3 | (x > negative) << 4 |
      (x >= negative) << 5 | (x < negative) << 6 | (x <= negative) << 7;
}

uint8_t pack(Array<uint8_t> bools) {
  if (bools.size() != 8) throw std::invalid_argument("pack8 takes eight bytes");
  return pack8(bools.data());
}

Array<uint8_t> unpack(uint8_t byte) {
  Array<uint8_t> bools(8);
  unpack8(byte, bools.mutable_data());
  return bools;
}

const Bindings binarize("binarize", [](py::module_& m) {
  m.def("heaviside_float32", py::vectorize([](float x) { return level(Heaviside(), x); }));
  m.def("heaviside_float64", py::vectorize([](double x) { return level(Heaviside(), x); }));
  m.def("sign_float32", py::vectorize([](float x) { return level(Sign(), x); }));
  m.def("sign_float64", py::vectorize([](double x) { return level(Sign(), x); }));
  m.def("ternary_float32", py::vectorize([](double t, float x) { return level(Ternary{t}, x); }));
  m.def("ternary_float64", py::vectorize([](double t, double x) { return level(Ternary{t}, x); }));
  m.def(
      "ternary_float16", py::vectorize([](double t, uint16_t bits) { return level(Ternary{t}, compare(Half{bits})); }));
  m.def("ternary_bfloat16", py::vectorize([](double t, uint16_t bits) {
          return level(Ternary{t}, compare(BFloat16{bits}));
        }));
  m.def("exp_float32", py::vectorize([](float x) { return portable_exp(x); }));
  m.def("exp_float64", py::vectorize([](double x) { return portable_exp(x); }));
  m.def("power_float32", py::vectorize([](float x, float p) { return portable_power(x, p); }));
  m.def("power_float64", py::vectorize([](double x, double p) { return portable_power(x, p); }));
  m.def("log_float32", py::vectorize([](float x) { return portable_log(x); }));
  m.def("log_float64", py::vectorize([](double x) { return portable_log(x); }));
  m.def("ternary_bits_float64", py::vectorize([](double x) { return binarized_bits(Ternary{0.5}, x, x); }));
  m.def("ternary_bits_float32", py::vectorize([](float x) { return binarized_bits(Ternary{0.5}, x, x); }));
  m.def("ternary_bits_float16", py::vectorize([](uint16_t x) { return bits16<Half>(x); }));
  m.def("ternary_bits_bfloat16", py::vectorize([](uint16_t x) { return bits16<BFloat16>(x); }));
  m.def("surrogates", [] { return names(std::make_index_sequence<std::tuple_size_v<Surrogates>>()); });
  m.def("passes_float32", &passes<float>);
  m.def("passes_float64", &passes<double>);
  m.def("passes_float16", &passes16<Half>);
  m.def("passes_bfloat16", &passes16<BFloat16>);
  m.def("heaviside_float16", py::vectorize([](uint16_t bits) { return level(Heaviside(), compare(Half{bits})); }));
  m.def("heaviside_bfloat16", py::vectorize([](uint16_t bits) { return level(Heaviside(), compare(BFloat16{bits})); }));
  m.def("sign_float16", py::vectorize([](uint16_t bits) { return level(Sign(), compare(Half{bits})); }));
  m.def("sign_bfloat16", py::vectorize([](uint16_t bits) { return level(Sign(), compare(BFloat16{bits})); }));
  m.def("comparisons_float16", py::vectorize(&comparisons<Half>));
  m.def("comparisons_bfloat16", py::vectorize(&comparisons<BFloat16>));
  m.def("pack8", &pack);
  m.def("unpack8", &unpack);
  m.def("mask_bytes", &mask_bytes);
  m.def("mask_bit", [](Array<uint8_t> mask, int64_t i) { return mask_bit(mask.data(), i); });
});

}  // namespace
}  // namespace ste_ops
