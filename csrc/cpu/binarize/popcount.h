// The counts of a tile of a product of bits: of 1 to 8 rows of a panel by one or two panels of lanes.
//
// A row's word meets the same word of 16 lanes, so that nothing is added across a register. Written three times:
// AVX-512 counts the bits of its lanes; AVX2 looks half a byte up in a register and adds bytes; the plain loop adds
// neighbouring bits, and is vectorized for any processor. Every loop over an array of registers is unrolled, or the
// compiler keeps the array in memory.
#pragma once

#include <cstdint>

#include "core/binarize/bits.h"
#include "cpu/loop.h"

namespace ste_ops {

constexpr int kTileRows = 8, kTilePanels = 2;
constexpr int kProductLanes = kTilePanels * kPanelRows;

// Where the words of a tile lie: of its first row, and of the lanes, whose second panel is `next_panel` words on.
struct TileWords {
  const uint32_t *rows, *row_masks, *lanes, *lane_masks;
  int64_t words, next_panel;
};

// Writes the counts, kProductLanes to a row.
using CountTile = void (*)(const TileWords&, int32_t* counts);

// Words whose counts fit a byte: 8 bits of each byte of a lane.
constexpr int64_t kByteSteps = 31;

template <Counting kCount>
STE_OPS_INLINE uint32_t counted_bits(uint32_t a, uint32_t a_mask, uint32_t b, uint32_t b_mask) {
  switch (kCount) {
    case Counting::differing: return a ^ b;
    case Counting::masked_rows: return (a ^ b) & a_mask;
    case Counting::masked_lanes: return (a ^ b) & b_mask;
    case Counting::step_rows: return a & ~b;
    default: return b & ~a;
  }
}

template <Counting kCount, int kRows, int kPanels>
void count_plain(const TileWords& tile, int32_t* counts) {
  constexpr bool row_masks = kCount == Counting::masked_rows, lane_masks = kCount == Counting::masked_lanes;
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      const uint32_t* lanes = tile.lanes + p * tile.next_panel;
      const uint32_t* masks = lane_masks ? tile.lane_masks + p * tile.next_panel : lanes;
      uint32_t total[kPanelRows] = {};
      for (int64_t begin = 0; begin < tile.words; begin += kByteSteps) {
        const int64_t end = begin + kByteSteps < tile.words ? begin + kByteSteps : tile.words;
        uint32_t bytes[kPanelRows] = {};
        for (int64_t k = begin; k < end; ++k) {
          const uint32_t a = tile.rows[k * kPanelRows + r];
          const uint32_t a_mask = row_masks ? tile.row_masks[k * kPanelRows + r] : 0;
          for (int l = 0; l < kPanelRows; ++l) {
            uint32_t x = counted_bits<kCount>(a, a_mask, lanes[k * kPanelRows + l], masks[k * kPanelRows + l]);
            x -= x >> 1 & 0x55555555u;
            x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
            bytes[l] += (x + (x >> 4)) & 0x0f0f0f0fu;
          }
        }
        for (int l = 0; l < kPanelRows; ++l) {
          const uint32_t pairs = (bytes[l] & 0x00ff00ffu) + (bytes[l] >> 8 & 0x00ff00ffu);
          total[l] += (pairs & 0xffffu) + (pairs >> 16);
        }
      }
      for (int l = 0; l < kPanelRows; ++l) counts[r * kProductLanes + p * kPanelRows + l] = int32_t(total[l]);
    }
  }
}

#ifdef STE_OPS_AVX512

#define STE_OPS_POPCOUNTS __attribute__((target("arch=x86-64-v4,avx512vpopcntdq,prefer-vector-width=512")))

// Truth tables of the ternary instruction, with a lane's word, a mask and a row's word in this order.
template <Counting kCount>
constexpr int kTruth = kCount == Counting::differing ? 0x5a
    : kCount == Counting::step_rows                  ? 0x0a
    : kCount == Counting::step_lanes                 ? 0x50
                                                     : 0x48;

template <Counting kCount, int kRows, int kPanels>
STE_OPS_POPCOUNTS void count_avx512(const TileWords& tile, int32_t* counts) {
  constexpr bool row_masks = kCount == Counting::masked_rows, lane_masks = kCount == Counting::masked_lanes;
  __m512i total[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) total[r][p] = _mm512_setzero_si512();
  }
  const uint32_t *rows = tile.rows, *lanes = tile.lanes;
  for (int64_t k = 0; k < tile.words; ++k, rows += kPanelRows, lanes += kPanelRows) {
    __m512i b[kPanels], mask[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      b[p] = _mm512_loadu_si512(lanes + p * tile.next_panel);
      mask[p] = lane_masks ? _mm512_loadu_si512(tile.lane_masks + p * tile.next_panel + k * kPanelRows) : b[p];
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(int(rows[r]));
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        const __m512i m = row_masks ? _mm512_set1_epi32(int(tile.row_masks[k * kPanelRows + r])) : mask[p];
        const __m512i x = kCount == Counting::differing ? _mm512_xor_si512(b[p], a)
                                                        : _mm512_ternarylogic_epi32(b[p], m, a, kTruth<kCount>);
        total[r][p] = _mm512_add_epi32(total[r][p], _mm512_popcnt_epi32(x));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) _mm512_storeu_si512(counts + r * kProductLanes + p * kPanelRows, total[r][p]);
  }
}

template <Counting kCount>
STE_OPS_AVX2 STE_OPS_INLINE __m256i counted_bits(__m256i a, __m256i a_mask, __m256i b, __m256i b_mask) {
  switch (kCount) {
    case Counting::differing: return _mm256_xor_si256(a, b);
    case Counting::masked_rows: return _mm256_and_si256(_mm256_xor_si256(a, b), a_mask);
    case Counting::masked_lanes: return _mm256_and_si256(_mm256_xor_si256(a, b), b_mask);
    case Counting::step_rows: return _mm256_andnot_si256(b, a);
    default: return _mm256_andnot_si256(a, b);
  }
}

// Up to four rows by one panel, which is two registers.
template <Counting kCount, int kRows>
STE_OPS_AVX2 void count_panel_avx2(
    const uint32_t* rows, const uint32_t* row_masks, const uint32_t* lanes, const uint32_t* lane_masks, int64_t words,
    int32_t* counts) {
  constexpr bool with_row_masks = kCount == Counting::masked_rows, with_lane_masks = kCount == Counting::masked_lanes;
  const __m256i table =
      _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(0x0f);
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < 2; ++h) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts + r * kProductLanes + 8 * h), _mm256_setzero_si256());
    }
  }
  for (int64_t begin = 0; begin < words; begin += kByteSteps) {
    const int64_t end = begin + kByteSteps < words ? begin + kByteSteps : words;
    __m256i bytes[kRows][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) bytes[r][0] = bytes[r][1] = _mm256_setzero_si256();
    for (int64_t k = begin * kPanelRows; k < end * kPanelRows; k += kPanelRows) {
      __m256i b[2], mask[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        b[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes + k + 8 * h));
        mask[h] = with_lane_masks ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane_masks + k + 8 * h)) : b[h];
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i a = _mm256_set1_epi32(int(rows[k + r]));
        const __m256i a_mask = with_row_masks ? _mm256_set1_epi32(int(row_masks[k + r])) : a;
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m256i x = counted_bits<kCount>(a, a_mask, b[h], mask[h]);
          const __m256i of_low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
          const __m256i of_high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
          bytes[r][h] = _mm256_add_epi8(bytes[r][h], _mm256_add_epi8(of_low, of_high));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        auto* own = reinterpret_cast<__m256i*>(counts + r * kProductLanes + 8 * h);
        const __m256i pairs = _mm256_maddubs_epi16(bytes[r][h], _mm256_set1_epi8(1));
        const __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        _mm256_storeu_si256(own, _mm256_add_epi32(_mm256_loadu_si256(own), sums));
      }
    }
  }
}

template <Counting kCount, int kRows, int kPanels>
STE_OPS_AVX2 void count_avx2(const TileWords& tile, int32_t* counts) {
  constexpr int rows = kRows < 4 ? kRows : 4;
  for (int r = 0; r < kRows; r += rows) {
    for (int p = 0; p < kPanels; ++p) {
      const uint32_t* row_masks = kCount == Counting::masked_rows ? tile.row_masks + r : nullptr;
      const uint32_t* lane_masks = kCount == Counting::masked_lanes ? tile.lane_masks + p * tile.next_panel : nullptr;
      count_panel_avx2<kCount, rows>(
          tile.rows + r, row_masks, tile.lanes + p * tile.next_panel, lane_masks, tile.words,
          counts + r * kProductLanes + p * kPanelRows);
    }
  }
}

#endif

// The counters of tiles of 8, 4, 2 and 1 rows by one or two panels.
struct Counters {
  CountTile of[4][kTilePanels];

  static int place(int rows) { return rows == 8 ? 3 : rows == 4 ? 2 : rows - 1; }
  CountTile operator()(int rows, int panels) const { return of[place(rows)][panels - 1]; }
};

#define STE_OPS_COUNTERS(function, count)                                                             \
  {                                                                                                   \
    {                                                                                                 \
      {function<count, 1, 1>, function<count, 1, 2>}, {function<count, 2, 1>, function<count, 2, 2>}, \
          {function<count, 4, 1>, function<count, 4, 2>}, {                                           \
        function<count, 8, 1>, function<count, 8, 2>                                                  \
      }                                                                                               \
    }                                                                                                 \
  }

template <Counting kCount>
Counters counters_at(const ChosenCapability& chosen) {
#ifdef STE_OPS_AVX512
  static constexpr Counters avx512 = STE_OPS_COUNTERS(count_avx512, kCount);
  static constexpr Counters avx2 = STE_OPS_COUNTERS(count_avx2, kCount);
  if (chosen.popcounts) return avx512;
  if (chosen.level != Capability::plain) return avx2;
#endif
  static constexpr Counters plain = STE_OPS_COUNTERS(count_plain, kCount);
  return plain;
}

inline Counters counters_of(Counting count, const ChosenCapability& chosen) {
  switch (count) {
    case Counting::differing: return counters_at<Counting::differing>(chosen);
    case Counting::masked_rows: return counters_at<Counting::masked_rows>(chosen);
    case Counting::masked_lanes: return counters_at<Counting::masked_lanes>(chosen);
    case Counting::step_rows: return counters_at<Counting::step_rows>(chosen);
    default: return counters_at<Counting::step_lanes>(chosen);
  }
}

}  // namespace ste_ops
