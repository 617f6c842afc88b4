// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as
// 1, 2, 3" (SC'11). Draw number i of a stream depends on (seed, stream, i) alone, so any backend and any number of
// threads can compute any stretch of it.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace ste_ops {

struct Random128 {
  uint32_t word[4];
};

// 64 random bits from two of the four words.
STE_HD uint64_t low_bits(const Random128& r) { return uint64_t(r.word[1]) << 32 | r.word[0]; }
STE_HD uint64_t high_bits(const Random128& r) { return uint64_t(r.word[3]) << 32 | r.word[2]; }

// The words stand in 64-bit lanes: each product is then one lane-wise multiplication, which compilers vectorize.
STE_HD Random128 philox(Random128 counter, uint64_t key) {
  constexpr uint64_t kLow = 0xffffffffu;
  uint64_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = 0xD2511F53u * c0;
    uint64_t p1 = 0xCD9E8D57u * c2;
    c0 = p1 >> 32 ^ c1 ^ k0;
    c2 = p0 >> 32 ^ c3 ^ k1;
    c1 = p1 & kLow;
    c3 = p0 & kLow;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{uint32_t(c0), uint32_t(c1), uint32_t(c2), uint32_t(c3)}};
}

// Draw number `index` of `stream` under `seed`.
STE_HD Random128 philox_draw(uint64_t seed, uint64_t stream, uint64_t index) {
  return philox({{uint32_t(index), uint32_t(index >> 32), uint32_t(stream), uint32_t(stream >> 32)}}, seed);
}

// The 64-bit halves of draws number first, first + stride, ..., written lane by lane so that a compiler turns the loop
// into vector code.
template <int N>
struct RandomBlock {
  uint64_t low[N];
  uint64_t high[N];
};

template <int N>
STE_HD void philox_block(uint64_t seed, uint64_t stream, uint64_t first, RandomBlock<N>& block, uint64_t stride = 1) {
  for (int lane = 0; lane < N; ++lane) {
    Random128 r = philox_draw(seed, stream, first + stride * uint64_t(lane));
    block.low[lane] = low_bits(r);
    block.high[lane] = high_bits(r);
  }
}

}  // namespace ste_ops
