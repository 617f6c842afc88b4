// From codes to the numbers that they stand for, and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/quantize/codes.h"
#include "cpu/loop.h"

namespace ste_ops {

// The number of a code, looked up.
template <class A>
struct Listed {
  const A* values;
  STE_OPS_INLINE A at(int code) const { return values[code]; }
};

// The same of levels that are whole or half multiples of one number: a lookup takes several times as long.
template <class A>
struct Even {
  A low, spacing;
  STE_OPS_INLINE A at(int code) const { return (A(code) + low) * spacing; }

  bool are(const Levels<A>& levels) const {
    bool same = true;
    for (int code = 0; code < levels.count; ++code) same &= at(code) == levels.values[code];
    return same;
  }
  static Even of(const Levels<A>& levels, A spacing) { return {round_even(levels.first / spacing * 2) / 2, spacing}; }
};

// Calls f with the quickest way from a code to its number. Levels are steps of their least one above zero, or of twice
// that, as signs are.
template <class A, class F>
void with_numbers(const Levels<A>& levels, const F& f) {
  const A* last = levels.values + levels.count;
  const A* least = std::upper_bound(levels.values, last, A(0));
  for (const A spacing : {least == last ? A(0) : *least, least == last ? A(0) : *least * 2}) {
    const auto even = Even<A>::of(levels, spacing);
    if (spacing > A(0) && even.are(levels)) return f(even);
  }
  f(Listed<A>{levels.values});
}

// The code that the place of an element in the levels suggests, and whether it is that of another number.
template <class A, class Numbers, class Steps>
struct Code {
  Levels<A> levels;
  Numbers numbers;
  Steps steps;
  int64_t base;
  const A* x;
  uint8_t* codes;

  STE_OPS_INLINE bool operator()(int64_t k) const {
    const Step<A> step = steps.at(base + k);
    const int code = levels.near(x[k], step.inverse);
    codes[k] = uint8_t(code);
    return numbers.at(code) * step.scale != x[k];
  }
};

// What codes stand for.
template <class A, class Numbers, class Steps>
struct Decode {
  Numbers numbers;
  Steps steps;
  int64_t base;
  const uint8_t* codes;
  A* out;

  STE_OPS_INLINE void operator()(int64_t k) const { out[k] = numbers.at(codes[k]) * steps.at(base + k).scale; }
};

// Whether all of count elements have the code that their places suggest.
template <class Code>
STE_OPS_INLINE bool code_all(Code code, int64_t count) {
  int differs = 0;
#pragma GCC ivdep
  for (int64_t k = 0; k < count; ++k) differs |= code(k);
  return !differs;
}

template <class Code>
STE_OPS_BELOW_AVX512 bool code_below_avx512(Code code, int64_t count) {
  return code_all(code, count);
}

#ifdef STE_OPS_AVX512
template <class Code>
STE_OPS_AVX512 bool code_avx512(Code code, int64_t count) {
  return code_all(code, count);
}
#endif

template <class Code>
bool coded(Code code, int64_t count) {
#ifdef STE_OPS_AVX512
  if (has_avx512()) return code_avx512(code, count);
#endif
  return code_below_avx512(code, count);
}

}  // namespace ste_ops
