// Panels of weights, and of the rows of a matrix, out of numbers or of bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/binarize/pack_words.h"
#include "cpu/binarize/product.h"
#include "cpu/share.h"

namespace ste_ops {

// Numbers of rows, one of the two strides being 1.
template <class T>
struct Rows {
  const T* x;
  int64_t rows, numbers, row_stride, number_stride;
};

// Rows of bytes of bits.
struct ByteRows {
  const uint8_t* x;
  int64_t rows, numbers;
};

// Up to four bytes, `step` apart, in one word.
STE_OPS_INLINE uint32_t word_of_bytes(const uint8_t* bytes, int64_t step, int64_t count) {
  uint32_t word = 0;
  for (int64_t j = 0; j < count && j < 4; ++j) word |= uint32_t(bytes[j * step]) << (8 * j);
  return word;
}

template <class Rule, class T>
void pack_panel(Capability level, const Rows<T>& m, int64_t first, uint32_t* out) {
  const int64_t rows = std::min<int64_t>(kPanelRows, m.rows - first), words = words_of(m.numbers);
  if (rows < kPanelRows) memset(out, 0, size_t(words) * kPanelRows * sizeof(uint32_t));
  if (m.number_stride == 1 || m.numbers == 1) {
    return pack_rows(
        level, PackRows<Rule, T>{m.x + first * m.row_stride, m.row_stride, rows, m.numbers, out, 1, kPanelRows});
  }
  const int64_t after = (m.numbers - 1) * m.number_stride + m.rows;
  for (int64_t w = 0; w < words; ++w) {
    const int64_t count = std::min<int64_t>(kWordBits, m.numbers - w * kWordBits);
    const int64_t place = w * kWordBits * m.number_stride + first;
    pack_lanes(
        level, PackLanes<Rule, T>{m.x + place, m.number_stride, count, rows, after - place, out + w * kPanelRows});
  }
}

template <class Rule>
void pack_panel(Capability, const ByteRows& m, int64_t first, uint32_t* out) {
  const int64_t rows = std::min<int64_t>(kPanelRows, m.rows - first), words = words_of(m.numbers);
  const int64_t bytes = mask_bytes(m.numbers);
  if (rows < kPanelRows) memset(out, 0, size_t(words) * kPanelRows * sizeof(uint32_t));
  for (int64_t r = 0; r < rows && words > 0; ++r) {
    const uint8_t* row = m.x + (first + r) * bytes;
    for (int64_t w = 0; w < bytes / 4; ++w) memcpy(out + w * kPanelRows + r, row + 4 * w, 4);
    if (bytes % 4) out[(words - 1) * kPanelRows + r] = word_of_bytes(row + bytes / 4 * 4, 1, bytes % 4);
    out[(words - 1) * kPanelRows + r] &= low_bits(m.numbers - (words - 1) * kWordBits);
  }
}

// All panels of a matrix.
template <class Rule, class M>
Words panels_of_rows(Capability level, const M& m) {
  const int64_t panel = words_of(m.numbers) * kPanelRows;
  Words words = new_words(panels_of(m.rows) * panel);
  uint32_t* out = words.get();
  share_out(panels_of(m.rows), double(panel) * 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel<Rule>(level, m, p * kPanelRows, out + p * panel);
  });
  return words;
}

// Weights of (groups * features, channels, taps), row-major: the panels of each group in turn, the words of the
// channels tap by tap.
template <class T>
struct TapWeights {
  const T* w;  // numbers, or bytes of bits along the channels
  int64_t groups, features, channels, taps;
  int64_t words() const { return taps * words_of(channels); }
  int64_t panels() const { return groups * panels_of(features); }
};

// The words of 32 channels of one feature, for all taps.
template <class T>
void pack_taps(Capability level, const TapWeights<T>& m, int64_t feature, int64_t w, uint32_t* out) {
  const int64_t place = (feature * m.channels + w * kWordBits) * m.taps;
  const int64_t count = std::min<int64_t>(kWordBits, m.channels - w * kWordBits);
  const int64_t readable = m.groups * m.features * m.channels * m.taps - place;
  // A float of a weight is read once, from memory, and little is done with it.
  const auto* next = reinterpret_cast<const char*>(m.w + place + 2 * count * m.taps);
  for (int64_t i = 0; i < count * m.taps * int64_t(sizeof(T)); i += 64) __builtin_prefetch(next + i);
  pack_lanes(level, PackLanes<IsPlus, T>{m.w + place, m.taps, count, m.taps, readable, out});
}

inline void pack_taps(Capability, const TapWeights<uint8_t>& m, int64_t feature, int64_t w, uint32_t* out) {
  const int64_t bytes = mask_bytes(m.channels);
  const uint8_t* own = m.w + (feature * bytes + w * 4) * m.taps;
  const uint32_t used = low_bits(m.channels - w * kWordBits);
  for (int64_t t = 0; t < m.taps; ++t) out[t] = word_of_bytes(own + t, m.taps, bytes - w * 4) & used;
}

template <class T>
Rows<T> group_rows(const TapWeights<T>& m, int64_t group) {
  return {m.w + group * m.features * m.channels, m.features, m.channels, m.channels, 1};
}
inline ByteRows group_rows(const TapWeights<uint8_t>& m, int64_t group) {
  return {m.w + group * m.features * mask_bytes(m.channels), m.features, m.channels};
}

template <class T>
void pack_weights(Capability level, const TapWeights<T>& m, uint32_t* out) {
  const int64_t per_group = panels_of(m.features), words = m.words(), of_channels = words_of(m.channels);
  share_out(m.panels(), double(words) * 64, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> taps(size_t(m.taps) + 1);
    for (int64_t p = begin; p < end; ++p) {
      uint32_t* panel = out + p * words * kPanelRows;
      const int64_t first = p % per_group * kPanelRows;
      if (m.taps == 1) {
        pack_panel<IsPlus>(level, group_rows(m, p / per_group), first, panel);
        continue;
      }
      memset(panel, 0, size_t(words) * kPanelRows * sizeof(uint32_t));
      const int64_t rows = std::min<int64_t>(kPanelRows, m.features - first);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t w = 0; w < of_channels; ++w) {
          pack_taps(level, m, p / per_group * m.features + first + r, w, taps.data());
          for (int64_t t = 0; t < m.taps; ++t) panel[(t * of_channels + w) * kPanelRows + r] = taps[size_t(t)];
        }
      }
    }
  });
}

}  // namespace ste_ops
