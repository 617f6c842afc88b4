// Storage types and the arithmetic behind them: float16 and bfloat16 are computed in float32, everything else in
// itself. The conversions are branch-free integer arithmetic, so that plain loops over them vectorize on every level; a
// GPU has instructions that round the same way.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace ste_ops {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class T>
using arithmetic_t = typename Arithmetic<T>::type;

// The integer of the same width, for code that moves values without reading them.
template <class T>
struct Bits {
  using type = uint16_t;
};
template <>
struct Bits<float> {
  using type = uint32_t;
};
template <>
struct Bits<double> {
  using type = uint64_t;
};
template <class T>
using bits_t = typename Bits<T>::type;

template <class To, class From>
STE_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

STE_HD float load(float x) { return x; }
STE_HD double load(double x) { return x; }
STE_HD float load(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

STE_HD float load(Half x) {
#if defined(__CUDA_ARCH__)
  // One instruction, which may drop the sign of a NaN, where the integers below take nine.
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return bit_cast<float>(bit_cast<uint32_t>(value) | uint32_t(x.bits & 0x8000u) << 16);
#else
  // Shifting the exponent into place leaves it 112 short; the product restores it and normalizes denormals.
  float magnitude = bit_cast<float>(uint32_t(x.bits & 0x7fffu) << 13) * 0x1p112f;
  uint32_t bits = bit_cast<uint32_t>(magnitude);
  bits |= (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bits | uint32_t(x.bits & 0x8000u) << 16);
#endif
}

STE_HD float magnitude(float x) { return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu); }
STE_HD double magnitude(double x) { return bit_cast<double>(bit_cast<uint64_t>(x) & 0x7fffffffffffffffu); }

template <class T>
STE_HD T store(arithmetic_t<T> x) {
  return x;
}

template <>
STE_HD BFloat16 store<BFloat16>(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t nan = bits >> 16 | 0x40u;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // One instruction for what the integers below do, but for the bits of a NaN.
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
#else
  uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
#endif
  return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <>
STE_HD Half store<Half>(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t magnitude = bits & 0x7fffffffu;
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return {uint16_t(magnitude > 0x7f800000u ? 0x7e00u | (bits >> 16 & 0x8000u) : half)};
#else
  // Half's smallest normal is 2^-14. Below it, adding 0.5 leaves the rounded denormal in the low mantissa bits.
  float shifted = bit_cast<float>(magnitude) + 0.5f;
  uint32_t denormal = bit_cast<uint32_t>(shifted) - 0x3f000000u;
  uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {uint16_t(half | (bits >> 16 & 0x8000u))};
#endif
}

}  // namespace ste_ops
