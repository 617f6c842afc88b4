// One bit an element: element i is bit i % 8 of byte i / 8. The spare bits of the last byte are zero.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace ste_ops {

STE_HD int64_t mask_bytes(int64_t numel) { return numel / 8 + (numel % 8 != 0); }

STE_HD bool mask_bit(const uint8_t* mask, int64_t i) { return mask[i / 8] >> (i % 8) & 1; }

// Eight bytes of 0 or 1 to one byte. The product shifts byte k to bit k of the top byte; no two terms share a bit, so
// nothing carries. Little-endian, as every platform with a torch wheel is.
STE_HD uint8_t pack8(const uint8_t* bools) {
  uint64_t bytes;
  memcpy(&bytes, bools, 8);
  return uint8_t((bytes * 0x0102040810204080ull) >> 56);
}

// And back: bit k to byte k, 0 or 1. Each byte of the product keeps its own bit, and adding 0x7f carries that bit,
// where it is set, to the byte's top.
STE_HD void unpack8(uint8_t byte, uint8_t* bools) {
  uint64_t own = byte * 0x0101010101010101ull & 0x8040201008040201ull;
  uint64_t bytes = (own + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
  memcpy(bools, &bytes, 8);
}

}  // namespace ste_ops
