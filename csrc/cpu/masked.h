// Element-wise loops that also write, or read, one mask bit an element.
//
// AVX-512 reads the top bits of a register of lanes straight into a mask register. No plain loop makes the compiler do
// that, and packing by products of bytes takes longer than all the rest; so there is a loop of its own for it, around
// the same plain loop over the lanes of one register, which stay in registers between the two.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/bitmask.h"
#include "core/dtype.h"
#include "cpu/loop.h"

namespace ste_ops {

constexpr int64_t kWord = 64;  // elements to a step, and bits to the mask word that it writes

// What a functor makes of an element: the bits of the output, and whether the gradient passes.
template <class T>
struct Masked {
  bits_t<T> out;
  bool passes;
};

// The lanes of one register: all ones where the gradient passes. `f(x, i)` gives a Masked<T>, i counts from the start
// of the tensor's memory.
template <int64_t kLanes, class F, class T>
STE_OPS_INLINE void masked_lanes(F f, const T* x, int64_t i, T* out, bits_t<T>* lanes) {
  bits_t<T> bits[kLanes];
#pragma GCC unroll 1
  for (int64_t k = 0; k < kLanes; ++k) {
    Masked<T> masked = f(x[i + k], i + k);
    bits[k] = masked.out;
    lanes[k] = masked.passes ? bits_t<T>(~bits_t<T>(0)) : bits_t<T>(0);
  }
  memcpy(out + i, bits, sizeof(bits));
}

template <class F, class T>
STE_OPS_BELOW_AVX512 void masked_words(F f, const T* x, T* out, uint8_t* mask, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kWord) {
    bits_t<T> lanes[kWord];
    uint8_t bools[kWord];
    masked_lanes<kWord>(f, x, i, out, lanes);
    for (int64_t k = 0; k < kWord; ++k) bools[k] = lanes[k] & 1;
    for (int64_t j = 0; j < kWord / 8; ++j) mask[i / 8 + j] = pack8(bools + 8 * j);
  }
}

template <class U>
STE_OPS_BELOW_AVX512 void where_words(const U* grad, const uint8_t* mask, U* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kWord) {
    uint8_t passes[kWord];
    for (int64_t j = 0; j < kWord / 8; ++j) unpack8(mask[i / 8 + j], passes + 8 * j);
    for (int64_t k = 0; k < kWord; ++k) out[i + k] = grad[i + k] & U(-U(passes[k]));
  }
}

#ifdef STE_OPS_AVX512

STE_OPS_AVX512_INLINE uint64_t top_bits(const uint16_t* lanes) {
  return _mm512_movepi16_mask(_mm512_loadu_si512(lanes));
}
STE_OPS_AVX512_INLINE uint64_t top_bits(const uint32_t* lanes) {
  return _mm512_movepi32_mask(_mm512_loadu_si512(lanes));
}
STE_OPS_AVX512_INLINE uint64_t top_bits(const uint64_t* lanes) {
  return _mm512_movepi64_mask(_mm512_loadu_si512(lanes));
}

STE_OPS_AVX512_INLINE __m512i where_bits(uint64_t word, __m512i grad, uint16_t) {
  return _mm512_maskz_mov_epi16(__mmask32(word), grad);
}
STE_OPS_AVX512_INLINE __m512i where_bits(uint64_t word, __m512i grad, uint32_t) {
  return _mm512_maskz_mov_epi32(__mmask16(word), grad);
}
STE_OPS_AVX512_INLINE __m512i where_bits(uint64_t word, __m512i grad, uint64_t) {
  return _mm512_maskz_mov_epi64(__mmask8(word), grad);
}

template <class F, class T>
STE_OPS_AVX512 void masked_words_avx512(F f, const T* x, T* out, uint8_t* mask, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  for (int64_t i = begin; i < end; i += kWord) {
    uint64_t word = 0;
    for (int64_t k = 0; k < kWord; k += kLanes) {
      bits_t<T> lanes[kLanes];
      masked_lanes<kLanes>(f, x, i + k, out, lanes);
      word |= top_bits(lanes) << k;
    }
    memcpy(mask + i / 8, &word, sizeof(word));
  }
}

template <class U>
STE_OPS_AVX512 void where_words_avx512(const U* grad, const uint8_t* mask, U* out, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = 64 / sizeof(U);
  for (int64_t i = begin; i < end; i += kWord) {
    uint64_t word;
    memcpy(&word, mask + i / 8, sizeof(word));
    for (int64_t k = 0; k < kWord; k += kLanes) {
      __m512i lanes = _mm512_loadu_si512(grad + i + k);
      // Not fused with the mask: masked loads do not start the hardware's prefetching, at two thirds of the speed.
      asm("" : "+v"(lanes));
      _mm512_storeu_si512(out + i + k, where_bits(word >> k, lanes, U()));
    }
  }
}

#endif

// Whole words of [begin, end), which is a multiple of kWord long.
template <class F, class T>
void masked_whole_words(F f, const T* x, T* out, uint8_t* mask, int64_t begin, int64_t end) {
#ifdef STE_OPS_AVX512
  if (has_avx512()) return masked_words_avx512(f, x, out, mask, begin, end);
#endif
  masked_words(f, x, out, mask, begin, end);
}

// out[i] and bit i of the mask from f(x[i], i), for i in [begin, end). `begin` is a multiple of kWord; so is `end`, or
// it is the tensor's.
template <class F, class T>
void masked_loop(F f, const T* x, T* out, uint8_t* mask, int64_t begin, int64_t end) {
  const int64_t whole = end - end % kWord;
  masked_whole_words(f, x, out, mask, begin, whole);
  for (int64_t byte = whole / 8; byte < mask_bytes(end); ++byte) mask[byte] = 0;
  for (int64_t i = whole; i < end; ++i) {
    Masked<T> masked = f(x[i], i);
    out[i] = bit_cast<T>(masked.out);
    mask[i / 8] |= uint8_t(masked.passes << i % 8);
  }
}

// grad where the mask has a one and 0 elsewhere.
template <class U>
void where_loop(const U* grad, const uint8_t* mask, U* out, int64_t begin, int64_t end) {
  const int64_t whole = end - end % kWord;
#ifdef STE_OPS_AVX512
  if (has_avx512()) {
    where_words_avx512(grad, mask, out, begin, whole);
  } else {
    where_words(grad, mask, out, begin, whole);
  }
#else
  where_words(grad, mask, out, begin, whole);
#endif
  for (int64_t i = whole; i < end; ++i) out[i] = mask_bit(mask, i) ? grad[i] : U(0);
}

}  // namespace ste_ops
