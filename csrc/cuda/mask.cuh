// One mask bit an element, a 32-bit word at a time.
#pragma once

#include "core/bitmask.h"
#include "cuda/vector.cuh"

namespace ste_ops {

// The lanes that fill one 32-bit word of the mask.
template <class T>
constexpr int kLanesOfMaskWord = 32 / Vector<T>::size;

// Every lane brings the bits of its vector, of which those past the end are dropped; the lanes of a word join them, and
// the first writes it. Whole warps only.
template <class T>
__device__ void store_mask_bits(uint8_t* mask, int64_t begin, int64_t numel, uint32_t bits) {
  if (begin + Vector<T>::size > numel) bits &= begin < numel ? (1u << (numel - begin)) - 1 : 0;
  int place = lane_index() % kLanesOfMaskWord<T>;
  uint32_t word = bits << (place * Vector<T>::size);
  for (int lanes = 1; lanes < kLanesOfMaskWord<T>; lanes *= 2) word |= __shfl_xor_sync(kFullWarp, word, lanes);
  if (place != 0 || begin >= numel) return;
  if (begin + 32 <= numel) {
    *reinterpret_cast<uint32_t*>(mask + begin / 8) = word;
  } else {
    for (int64_t byte = begin / 8; byte < mask_bytes(numel); ++byte, word >>= 8) mask[byte] = uint8_t(word);
  }
}

// The bits of the vector at `begin`, a multiple of its size, the first in bit 0.
template <class T>
__device__ uint32_t load_mask_bits(const uint8_t* mask, int64_t begin, int64_t numel) {
  if (begin >= numel) return 0;
  return uint32_t(mask[begin / 8]) >> (begin % 8);
}

}  // namespace ste_ops
