// Numbers read as bits, into words.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/binarize/bits.h"
#include "core/bitmask.h"
#include "cpu/loop.h"

namespace ste_ops {

template <class Rule, class T>
STE_OPS_INLINE uint32_t word_of(const T* x) {
  uint8_t ones[kWordBits];
#pragma GCC unroll 1
  for (int i = 0; i < kWordBits; ++i) ones[i] = uint8_t(Rule()(x[i]));
  uint32_t word = 0;
  for (int j = 0; j < 4; ++j) word |= uint32_t(pack8(ones + 8 * j)) << (8 * j);
  return word;
}

// The last numbers of a row, fewer than a word has bits.
template <class Rule, class T>
STE_OPS_INLINE uint32_t part_of_word(const T* x, int64_t count) {
  T last[kWordBits] = {};
  memcpy(last, x, size_t(count) * sizeof(T));
  return word_of<Rule>(static_cast<const T*>(last)) & low_bits(count);
}

// Rows of numbers side by side: word w of row r to out[r * row_step + w * word_step].
template <class Rule, class T>
struct PackRows {
  const T* x;
  int64_t row_stride, rows, numbers;
  uint32_t* out;
  int64_t row_step, word_step;

  STE_OPS_INLINE void operator()() const {
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = x + r * row_stride;
      int64_t w = 0;
      for (; (w + 1) * kWordBits <= numbers; ++w) {
        out[r * row_step + w * word_step] = word_of<Rule>(row + w * kWordBits);
      }
      finish_row(r, w);
    }
  }

  STE_OPS_INLINE void finish_row(int64_t r, int64_t w) const {
    const int64_t left = numbers - w * kWordBits;
    if (left > 0) out[r * row_step + w * word_step] = part_of_word<Rule>(x + r * row_stride + w * kWordBits, left);
  }
};

#ifdef STE_OPS_AVX512

// Comparisons whose result is bits already; no plain loop makes the compiler use them.
template <class Rule>
STE_OPS_AVX512 void pack_rows_avx512(const PackRows<Rule, float>& pack) {
  constexpr int comparison = std::is_same_v<Rule, IsPlus> ? _CMP_GE_OQ : _CMP_GT_OQ;
  const __m512 zero = _mm512_setzero_ps();
  for (int64_t r = 0; r < pack.rows; ++r) {
    const float* row = pack.x + r * pack.row_stride;
    uint32_t* out = pack.out + r * pack.row_step;
    for (int64_t i = 0; i < pack.numbers; i += kWordBits, out += pack.word_step) {
      const uint32_t read = low_bits(std::min<int64_t>(pack.numbers - i, kWordBits));
      const uint32_t low =
          _mm512_mask_cmp_ps_mask(__mmask16(read), _mm512_maskz_loadu_ps(__mmask16(read), row + i), zero, comparison);
      const uint32_t high = _mm512_mask_cmp_ps_mask(
          __mmask16(read >> 16), _mm512_maskz_loadu_ps(__mmask16(read >> 16), row + i + 16), zero, comparison);
      *out = low | high << 16;
    }
  }
}

template <class Rule>
STE_OPS_AVX2 void pack_rows_avx2(const PackRows<Rule, float>& pack) {
  constexpr int comparison = std::is_same_v<Rule, IsPlus> ? _CMP_GE_OQ : _CMP_GT_OQ;
  const __m256 zero = _mm256_setzero_ps();
  for (int64_t r = 0; r < pack.rows; ++r) {
    const float* row = pack.x + r * pack.row_stride;
    int64_t w = 0;
    for (; (w + 1) * kWordBits <= pack.numbers; ++w) {
      uint32_t word = 0;
      for (int j = 0; j < 4; ++j) {
        const __m256 compared = _mm256_cmp_ps(_mm256_loadu_ps(row + w * kWordBits + 8 * j), zero, comparison);
        word |= uint32_t(_mm256_movemask_ps(compared)) << (8 * j);
      }
      pack.out[r * pack.row_step + w * pack.word_step] = word;
    }
    pack.finish_row(r, w);
  }
}

#endif

template <class Rule, class T>
void pack_rows(Capability level, const PackRows<Rule, T>& pack) {
#ifdef STE_OPS_AVX512
  if constexpr (std::is_same_v<T, float>) {
    if (level == Capability::avx512) return pack_rows_avx512(pack);
    if (level == Capability::avx2) return pack_rows_avx2(pack);
  }
#endif
  run_at(level, pack);
}

// A word for each of `lanes` neighbours: bit c is that of x[c * stride + lane], of up to 32 numbers. `readable` numbers
// of x may be read. Eight streams are read at once: of 32, a power of two apart, a cache would hold too little.
template <class Rule, class T>
struct PackLanes {
  const T* x;
  int64_t stride, count, lanes, readable;
  uint32_t* out;

  static constexpr int kStreams = 8, kStretch = 512;

  // Bits first..last of kLanes words.
  template <int kLanes>
  STE_OPS_INLINE static void block(const T* x, int64_t stride, int64_t first, int64_t last, uint32_t* out) {
    uint32_t words[kLanes] = {};
    if (first > 0) memcpy(words, out, sizeof(words));
    for (int64_t c = first; c < last; ++c) {
      const T* row = x + c * stride;
      for (int l = 0; l < kLanes; ++l) words[l] |= Rule()(row[l]) << c;
    }
    memcpy(out, words, sizeof(words));
  }

  STE_OPS_INLINE void operator()() const {
    const int64_t whole = lanes / 16 * 16;
    for (int64_t begin = 0; begin < whole; begin += kStretch) {
      const int64_t end = std::min<int64_t>(begin + kStretch, whole);
      for (int64_t first = 0; first < count; first += kStreams) {
        const int64_t last = std::min<int64_t>(first + kStreams, count);
        int64_t lane = begin;
        for (; lane + 64 <= end; lane += 64) block<64>(x + lane, stride, first, last, out + lane);
        for (; lane < end; lane += 16) block<16>(x + lane, stride, first, last, out + lane);
      }
    }
    if (whole < lanes) finish(whole);
  }

  STE_OPS_INLINE void finish(int64_t lane) const {
    uint32_t last[16];
    if ((count - 1) * stride + lane + 16 <= readable) {
      block<16>(x + lane, stride, 0, count, last);
    } else {
      T copied[kWordBits * 16] = {};
      for (int64_t c = 0; c < count; ++c) {
        memcpy(copied + c * 16, x + c * stride + lane, size_t(lanes - lane) * sizeof(T));
      }
      block<16>(copied, 16, 0, count, last);
    }
    memcpy(out + lane, last, size_t(lanes - lane) * sizeof(uint32_t));
  }
};

#ifdef STE_OPS_AVX512

// The same with comparisons whose result is a mask of the lanes to change.
template <class Rule>
struct PackLanesAvx512 {
  static constexpr int kComparison = std::is_same_v<Rule, IsPlus> ? _CMP_GE_OQ : _CMP_GT_OQ;

  template <int kVectors>
  STE_OPS_AVX512_INLINE static void block(
      const float* x, int64_t stride, int64_t first, int64_t last, uint32_t* out, __mmask16 stored) {
    __m512i words[kVectors], bit = _mm512_set1_epi32(int(1u << first));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) words[v] = first > 0 ? _mm512_loadu_si512(out + 16 * v) : _mm512_setzero_si512();
    for (int64_t c = first; c < last; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512 numbers = _mm512_maskz_loadu_ps(stored, x + c * stride + 16 * v);
        const __mmask16 ones = _mm512_cmp_ps_mask(numbers, _mm512_setzero_ps(), kComparison);
        words[v] = _mm512_mask_or_epi32(words[v], ones, words[v], bit);
      }
      bit = _mm512_add_epi32(bit, bit);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_epi32(out + 16 * v, stored, words[v]);
  }

  STE_OPS_AVX512 static void run(const PackLanes<Rule, float>& p) {
    using Plain = PackLanes<Rule, float>;
    const int64_t whole = p.lanes / 16 * 16;
    for (int64_t begin = 0; begin < whole; begin += Plain::kStretch) {
      const int64_t end = std::min<int64_t>(begin + Plain::kStretch, whole);
      for (int64_t first = 0; first < p.count; first += Plain::kStreams) {
        const int64_t last = std::min<int64_t>(first + Plain::kStreams, p.count);
        int64_t lane = begin;
        for (; lane + 64 <= end; lane += 64) block<4>(p.x + lane, p.stride, first, last, p.out + lane, 0xffff);
        for (; lane < end; lane += 16) block<1>(p.x + lane, p.stride, first, last, p.out + lane, 0xffff);
      }
    }
    const auto left = __mmask16(low_bits(p.lanes - whole));
    if (whole < p.lanes) block<1>(p.x + whole, p.stride, 0, p.count, p.out + whole, left);
  }
};

#endif

template <class Rule, class T>
void pack_lanes(Capability level, const PackLanes<Rule, T>& pack) {
#ifdef STE_OPS_AVX512
  if constexpr (std::is_same_v<T, float>) {
    if (level == Capability::avx512) return PackLanesAvx512<Rule>::run(pack);
  }
#endif
  run_at(level, pack);
}

}  // namespace ste_ops
