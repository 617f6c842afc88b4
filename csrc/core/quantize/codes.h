// Codes: which of a few numbers each element of a tensor is, in 1, 2, 4 or 8 bits. Code i is in the bits from
// (i * bits) % 8 on of byte i * bits / 8, which with one bit is a mask (core/bitmask.h). The spare bits of the last
// byte are zero.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"
#include "core/quantize/uniform.h"

namespace ste_ops {

STE_HD int64_t code_bytes(int64_t numel, int bits) {
  const int64_t in_byte = 8 / bits;
  return numel / in_byte + (numel % in_byte != 0);
}

// What a quantizer puts out, ascending and in equal steps but for rounding: number `code` times the scale of a group.
template <class A>
struct Levels {
  const A* values;
  int count;
  A first, per_step;

  STE_HD static Levels of(const A* values, int count) {
    const A first = values[0], reach = values[count - 1] - first;
    return {values, count, first, reach > A(0) ? A(count - 1) / reach : A(0)};
  }

  // The code of x where x is one of them; where a narrow dtype rounds several to one number, maybe of a neighbour.
  STE_HD int near(A x, A inverse) const {
    const A place = (x * inverse - first) * per_step, last = A(count - 1);
    const A above = place > A(0) ? place : A(0);  // 0 of a NaN
    return int((above < last ? above : last) + A(0.5));
  }

  template <class T>
  STE_HD T value(int code, A scale) const {
    return store<T>(values[code] * scale);
  }

  // The code with exactly this value, a zero of either sign being one; -1 where there is none.
  template <class T>
  STE_HD int exact(T x, A scale, A inverse) const {
    const A number = load(x);
    const int guess = near(number, inverse);
    if (load(value<T>(guess, scale)) == number) return guess;
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (load(value<T>(middle, scale)) < number) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return load(value<T>(low, scale)) == number ? low : -1;
  }
};

// Behind the codes a byte for each run of so many elements, 512 bytes of the dtype: 1 where one of them is in no
// levels.
template <class T>
constexpr int64_t kCodeRun = 512 / sizeof(T);

template <class T>
STE_HD int64_t code_runs(int64_t numel) {
  return numel / kCodeRun<T> + (numel % kCodeRun<T> != 0);
}

}  // namespace ste_ops
