// One bit for each number of a binary tensor, and the words and panels in which products of bits read them.
//
// A word holds 32 successive numbers along the dimension that is summed, the first in its lowest bit; what is left of
// the last word is zero. A panel holds 16 rows: [word][16], word k of row r of the panel in place k * 16 + r, so that
// the rows are the lanes of a register.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

namespace ste_ops {

constexpr int kWordBits = 32;
constexpr int kPanelRows = 16;

STE_HD int64_t words_of(int64_t numbers) { return (numbers + kWordBits - 1) / kWordBits; }
STE_HD int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// The lowest `count` bits, of 32 at most.
STE_HD uint32_t low_bits(int64_t count) { return count >= kWordBits ? ~0u : (1u << count) - 1u; }

template <class T>
constexpr uint32_t kInfinityBits = 0x7f80;
template <>
constexpr uint32_t kInfinityBits<Half> = 0x7c00;

// 1 where x >= 0, as `sign` gives +1: at both zeros and not at NaN. The narrow types are compared as integers, which
// loops over them vectorize.
struct IsPlus {
  STE_HD uint32_t operator()(float x) const { return x >= 0.0f; }
  STE_HD uint32_t operator()(double x) const { return x >= 0.0; }
  template <class T>
  STE_HD uint32_t operator()(T x) const {
    return uint32_t(uint32_t(x.bits) <= kInfinityBits<T>) | uint32_t(uint32_t(x.bits) == 0x8000u);
  }
};

// 1 where x > 0, as `heaviside` gives 1.
struct IsAboveZero {
  STE_HD uint32_t operator()(float x) const { return x > 0.0f; }
  STE_HD uint32_t operator()(double x) const { return x > 0.0; }
  template <class T>
  STE_HD uint32_t operator()(T x) const {
    return uint32_t(uint32_t(x.bits) - 1u < kInfinityBits<T>);
  }
};

// What a bit of a row (a) and of a lane (b) add to the count of a product. With +1 and -1 on both sides the product is
// the numbers less twice the differing bits. A mask m leaves out numbers that are 0. Where one side holds steps, 1 and
// 0, the product is the number of its ones less twice those that meet a -1.
enum class Counting {
  differing,     // a ^ b
  masked_rows,   // (a ^ b) & m of the row
  masked_lanes,  // (a ^ b) & m of the lane
  step_rows,     // a & ~b
  step_lanes,    // b & ~a
};

}  // namespace ste_ops
