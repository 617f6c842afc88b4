// A tile of all-ones or all-zeros lanes to one bit each. AVX-512 reads a lane's top bit straight into a mask register;
// no plain loop makes the compiler do that, and with bytes and products in its place the packing takes longer than the
// rest.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/bitmask.h"
#include "loop.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define STE_OPS_AVX512_PACK 1
#endif

namespace ste_ops {

// Elements of one pass over the registers: a whole number of mask words, small enough for the first-level cache. What a
// tile costs once weighs more where its elements are narrow.
template <class T>
constexpr int64_t kTile = sizeof(T) == 2 ? 512 : 128;

template <class U>
STE_OPS_INLINE void pack_plain(const U* lanes, uint8_t* mask) {
  uint8_t bools[kTile<U>];
  for (int64_t i = 0; i < kTile<U>; ++i) bools[i] = lanes[i] & 1;
  for (int64_t j = 0; j < kTile<U> / 8; ++j) mask[j] = pack8(bools + 8 * j);
}

#ifdef STE_OPS_AVX512_PACK
#define STE_OPS_DEFAULT_TARGET __attribute__((target("default")))
#define STE_OPS_AVX512_TARGET __attribute__((target("arch=x86-64-v4")))

STE_OPS_AVX512_TARGET inline void pack_tile(const uint16_t* lanes, uint8_t* mask) {
  for (int64_t j = 0; j < kTile<uint16_t> / 32; ++j) {
    uint32_t bits = _mm512_movepi16_mask(_mm512_loadu_si512(lanes + 32 * j));
    memcpy(mask + 4 * j, &bits, sizeof(bits));
  }
}

STE_OPS_AVX512_TARGET inline void pack_tile(const uint32_t* lanes, uint8_t* mask) {
  for (int64_t j = 0; j < kTile<uint32_t> / 16; ++j) {
    uint16_t bits = _mm512_movepi32_mask(_mm512_loadu_si512(lanes + 16 * j));
    memcpy(mask + 2 * j, &bits, sizeof(bits));
  }
}

STE_OPS_AVX512_TARGET inline void pack_tile(const uint64_t* lanes, uint8_t* mask) {
  for (int64_t j = 0; j < kTile<uint64_t> / 8; ++j) mask[j] = _mm512_movepi64_mask(_mm512_loadu_si512(lanes + 8 * j));
}
#else
#define STE_OPS_DEFAULT_TARGET
#endif

STE_OPS_DEFAULT_TARGET inline void pack_tile(const uint16_t* lanes, uint8_t* mask) { pack_plain(lanes, mask); }
STE_OPS_DEFAULT_TARGET inline void pack_tile(const uint32_t* lanes, uint8_t* mask) { pack_plain(lanes, mask); }
STE_OPS_DEFAULT_TARGET inline void pack_tile(const uint64_t* lanes, uint8_t* mask) { pack_plain(lanes, mask); }

}  // namespace ste_ops
