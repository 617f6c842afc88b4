// Bits of the signs of numbers along a dimension, and back.
#include "cpu/binarize/pack_words.h"
#include "cpu/share.h"
#include "ops/binarize/products.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int64_t kBatchNumbers = 8192;  // whose words are in the first-level cache

// Rows in which the packed dimension is the last. Those of whole bytes are one long row.
template <class T>
void pack_last(Capability level, const T* x, const BitsCall& call, uint8_t* out) {
  const bool joined = call.numbers % 8 == 0;
  const int64_t rows = joined ? 1 : call.outer, numbers = joined ? call.outer * call.numbers : call.numbers;
  const int64_t batches = (numbers + kBatchNumbers - 1) / kBatchNumbers, bytes = mask_bytes(numbers);
  share_out(rows * batches, double(std::min(numbers, kBatchNumbers)) * 0.15, [&](int64_t begin, int64_t end) {
    uint32_t words[kBatchNumbers / kWordBits];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / batches, first = i % batches * kBatchNumbers;
      const int64_t count = std::min(kBatchNumbers, numbers - first);
      pack_rows(level, PackRows<IsPlus, T>{x + row * numbers + first, 0, 1, count, words, 0, 1});
      memcpy(out + row * bytes + first / 8, words, size_t(mask_bytes(count)));
    }
  });
}

struct LowBytes {
  const uint32_t* words;
  uint8_t* bytes;
  STE_OPS_INLINE void operator()(int64_t i) const { bytes[i] = uint8_t(words[i]); }
};

// A byte of eight numbers for each of the lanes behind the packed dimension.
template <class T>
void pack_inner(Capability level, const T* x, const BitsCall& call, uint8_t* out) {
  const int64_t bytes = call.bytes(), numel = call.outer * call.numbers * call.inner;
  share_out(call.outer * bytes, double(call.inner) * 1.5, [&](int64_t begin, int64_t end) {
    uint32_t words[1024];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % bytes * 8, count = std::min<int64_t>(8, call.numbers - first);
      for (int64_t lane = 0; lane < call.inner; lane += 1024) {
        const int64_t place = (i / bytes * call.numbers + first) * call.inner + lane;
        const int64_t lanes = std::min<int64_t>(1024, call.inner - lane);
        pack_lanes(level, PackLanes<IsPlus, T>{x + place, call.inner, count, lanes, numel - place, words});
        each(LowBytes{words, out + i * call.inner + lane}, 0, lanes);
      }
    }
  });
}

template <class T>
struct Choose {
  const uint8_t* ones;  // 0 or 1
  bits_t<T>* out;
  bits_t<T> plus, minus;
  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = ones[i] ? plus : minus; }
};

template <class T>
struct ChooseBit {
  const uint8_t* bytes;
  int bit;
  bits_t<T>* out;
  bits_t<T> plus, minus;
  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = bytes[i] >> bit & 1 ? plus : minus; }
};

template <class T>
void unpack(const uint8_t* bits, const BitsCall& call, T* result) {
  const auto plus = bit_cast<bits_t<T>>(store<T>(1)), minus = bit_cast<bits_t<T>>(store<T>(-1));
  auto* const out = reinterpret_cast<bits_t<T>*>(result);
  const int64_t bytes = call.bytes();
  if (call.inner > 1) {
    share_out(call.outer * call.numbers, double(call.inner) * 0.2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t number = i % call.numbers;
        const uint8_t* own = bits + (i / call.numbers * bytes + number / 8) * call.inner;
        each(ChooseBit<T>{own, int(number % 8), out + i * call.inner, plus, minus}, 0, call.inner);
      }
    });
    return;
  }
  const int64_t batches = (call.numbers + 1023) / 1024;
  share_out(call.outer * batches, double(std::min<int64_t>(call.numbers, 1024)) * 0.3, [&](int64_t begin, int64_t end) {
    uint8_t ones[1024];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / batches, first = i % batches * 1024,
                    count = std::min<int64_t>(1024, call.numbers - first);
      const uint8_t* own = bits + row * bytes + first / 8;
      for (int64_t j = 0; j < mask_bytes(count); ++j) unpack8(own[j], ones + 8 * j);
      each(Choose<T>{ones, out + row * call.numbers + first, plus, minus}, 0, count);
    }
  });
}

Tensor pack_bits_cpu(Tensor x, int64_t dim) {
  constexpr const char* op = "pack_bits";
  const Capability level = checked_capability(op).level;
  const BitsCall call(op, "x", x, dim, dim >= 0 && dim < x.dim() ? x.size(dim) : 0);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[size_t(dim)] = call.bytes();
  const Tensor bits = new_contiguous(sizes, ScalarType::Byte, x);
  dispatch_elements(op, "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    if (call.inner == 1) {
      pack_last(level, const_data<T>(x), call, mutable_data<uint8_t>(bits));
    } else {
      pack_inner(level, const_data<T>(x), call, mutable_data<uint8_t>(bits));
    }
  });
  return bits;
}

void unpack_bits_cpu(Tensor bits, int64_t dim, Tensor out) {
  constexpr const char* op = "unpack_bits";
  const BitsCall call(op, "out", out, dim, dim >= 0 && dim < out.dim() ? out.size(dim) : 0);
  check_bits(op, bits, out, dim, call);
  dispatch_elements(op, "out", out, [&](auto type) {
    using T = typename decltype(type)::type;
    unpack(const_data<uint8_t>(bits), call, mutable_data<T>(out));
  });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits_cpu));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cpu));
}

}  // namespace ste_ops
