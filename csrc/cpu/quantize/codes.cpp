// Codes of what quantizers put out.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "cpu/quantize/numbers.h"
#include "cpu/quantize/steps.h"
#include "ops/library.h"
#include "ops/quantize/codes.h"

namespace ste_ops {
namespace {

// Eight codes, a byte each, side by side in the low bits, and back: neighbours join, then pairs, then fours.
STE_OPS_INLINE uint64_t joined(uint64_t codes, int bits) {
  if (bits == 8) return codes;
  if (bits == 4) {
    codes = (codes | codes >> 4) & 0x00ff00ff00ff00ffull;
    codes = (codes | codes >> 8) & 0x0000ffff0000ffffull;
    return (codes | codes >> 16) & 0xffffffffull;
  }
  codes = (codes | codes >> 6) & 0x000f000f000f000full;
  codes = (codes | codes >> 12) & 0x000000ff000000ffull;
  return (codes | codes >> 24) & 0xffffull;
}

STE_OPS_INLINE uint64_t parted(uint64_t packed, int bits) {
  if (bits == 8) return packed;
  if (bits == 4) {
    packed = (packed | packed << 16) & 0x0000ffff0000ffffull;
    packed = (packed | packed << 8) & 0x00ff00ff00ff00ffull;
    return (packed | packed << 4) & 0x0f0f0f0f0f0f0f0full;
  }
  packed = (packed | packed << 24) & 0x000000ff000000ffull;
  packed = (packed | packed << 12) & 0x000f000f000f000full;
  return (packed | packed << 6) & 0x0303030303030303ull;
}

template <int kBits>
STE_OPS_CLONES void pack_bytes(const uint8_t* codes, uint8_t* out, int64_t eights) {
  for (int64_t j = 0; j < eights; ++j) {
    uint64_t eight;
    memcpy(&eight, codes + 8 * j, 8);
    const uint64_t packed = kBits == 1 ? pack8(codes + 8 * j) : joined(eight, kBits);
    memcpy(out + kBits * j, &packed, kBits);
  }
}

template <int kBits>
STE_OPS_CLONES void unpack_bytes(const uint8_t* packed, uint8_t* codes, int64_t eights) {
  for (int64_t j = 0; j < eights; ++j) {
    uint64_t own = 0;
    memcpy(&own, packed + kBits * j, kBits);
    if (kBits == 1) {
      unpack8(uint8_t(own), codes + 8 * j);
    } else {
      own = parted(own, kBits);
      memcpy(codes + 8 * j, &own, 8);
    }
  }
}

// f of 1, 2, 4 or 8 bits as a constant.
template <class F>
void with_bits(int bits, const F& f) {
  switch (bits) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 8>());
  }
}

template <class A>
STE_OPS_CLONES bool equal(const A* a, const A* b, int64_t count) {
  int differs = 0;
  for (int64_t k = 0; k < count; ++k) differs |= a[k] != b[k];
  return !differs;
}

template <class T, class Numbers>
struct PackStretch {
  using A = arithmetic_t<T>;
  static constexpr int64_t kAlign = 8;  // whole bytes
  Levels<A> levels;
  Numbers numbers;
  const T* x;
  int bits;
  uint8_t* out;
  std::atomic<bool>* missed;

  template <class Steps>
  void operator()(const Steps& steps, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; i += kBatch) batch(steps, i, std::min(kBatch, end - i));
  }

  template <class Steps>
  void batch(const Steps& steps, int64_t begin, int64_t count) const {
    uint8_t codes[kBatch];
    bool same;
    if constexpr (sizeof(T) == 2) {
      A wide[kBatch], values[kBatch];
      T narrow[kBatch];
      each(Widen<T>{x + begin, wide}, 0, count);
      coded(Code<A, Numbers, Steps>{levels, numbers, steps, begin, wide, codes}, count);
      each(Decode<A, Numbers, Steps>{numbers, steps, begin, codes, values}, 0, count);
      each(Narrow<T>{values, narrow}, 0, count);
      each(Widen<T>{narrow, values}, 0, count);
      same = equal(static_cast<const A*>(wide), static_cast<const A*>(values), count);
    } else {
      same = coded(Code<A, Numbers, Steps>{levels, numbers, steps, begin, x + begin, codes}, count);
    }
    if (!same) one_by_one(steps, begin, count, codes);
    std::fill(codes + count, codes + (count + 7) / 8 * 8, 0);
    with_bits(bits, [&](auto constant) { write<constant()>(codes, begin, count); });
  }

  template <int kBits>
  void write(const uint8_t* codes, int64_t begin, int64_t count) const {
    uint8_t* place = out + begin * kBits / 8;
    pack_bytes<kBits>(codes, place, count / 8);
    if (count % 8 == 0) return;
    uint8_t last[8];
    pack_bytes<kBits>(codes + count / 8 * 8, last, 1);
    memcpy(place + count / 8 * kBits, last, code_bytes(count % 8, kBits));
  }

  template <class Steps>
  void one_by_one(const Steps& steps, int64_t begin, int64_t count, uint8_t* codes) const {
    for (int64_t k = 0; k < count; ++k) {
      const Step<A> step = steps.at(begin + k);
      const int code = levels.exact(x[begin + k], step.scale, step.inverse);
      if (code < 0) missed->store(true, std::memory_order_relaxed);
      codes[k] = uint8_t(code < 0 ? 0 : code);
    }
  }
};

template <class T, class Numbers>
struct UnpackStretch {
  using A = arithmetic_t<T>;
  static constexpr int64_t kAlign = 8;
  Numbers numbers;
  const uint8_t* packed;
  int bits;
  T* out;

  template <class Steps>
  void operator()(const Steps& steps, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; i += kBatch) batch(steps, i, std::min(kBatch, end - i));
  }

  template <class Steps>
  void batch(const Steps& steps, int64_t begin, int64_t count) const {
    uint8_t codes[kBatch];
    with_bits(bits, [&](auto constant) { read<constant()>(codes, begin, count); });
    if constexpr (sizeof(T) == 2) {
      A values[kBatch];
      each(Decode<A, Numbers, Steps>{numbers, steps, begin, codes, values}, 0, count);
      each(Narrow<T>{values, out + begin}, 0, count);
    } else {
      each(Decode<A, Numbers, Steps>{numbers, steps, begin, codes, out + begin}, 0, count);
    }
  }

  template <int kBits>
  void read(uint8_t* codes, int64_t begin, int64_t count) const {
    const uint8_t* place = packed + begin * kBits / 8;
    unpack_bytes<kBits>(place, codes, count / 8);
    if (count % 8 == 0) return;
    uint8_t last[8] = {};
    memcpy(last, place + count / 8 * kBits, code_bytes(count % 8, kBits));
    unpack_bytes<kBits>(last, codes + count / 8 * 8, 1);
  }
};

// Over all elements, with the scale of each.
template <class Stretch, class A>
void each_coded(const CodeTable& table, const Tensor& x, const Stretch& stretch, A one) {
  if (!table.scale) return each_stretch(TensorStep<A>{{one, one, 0}}, x.numel(), stretch);
  const A* scale = const_data<A>(*table.scale);
  std::vector<Step<A>> steps(table.groups.size);
  for (int64_t g = 0; g < table.groups.size; ++g) steps[g] = step_of(scale[g], A(0));
  each_stretch(ChannelSteps<A>(table.groups, std::move(steps)), x.numel(), stretch);
}

template <class T>
void pack_loop(Type<T>, const CodeTable& table, const Tensor& q, const Tensor& codes, std::atomic<bool>& missed) {
  using A = arithmetic_t<T>;
  const auto levels = Levels<A>::of(const_data<A>(table.values), table.count());
  with_numbers(levels, [&](const auto& numbers) {
    using Stretch = PackStretch<T, std::decay_t<decltype(numbers)>>;
    each_coded(table, q, Stretch{levels, numbers, const_data<T>(q), table.bits, mutable_bytes(codes), &missed}, A(1));
  });
  std::fill_n(mutable_bytes(codes) + code_bytes(q.numel(), table.bits), code_runs<T>(q.numel()), uint8_t(0));
}

template <class T>
void unpack_loop(Type<T>, const CodeTable& table, const Tensor& codes, const Tensor& out) {
  using A = arithmetic_t<T>;
  const auto levels = Levels<A>::of(const_data<A>(table.values), table.count());
  T* x = mutable_data<T>(out);
  with_numbers(levels, [&](const auto& numbers) {
    using Stretch = UnpackStretch<T, std::decay_t<decltype(numbers)>>;
    each_coded(table, out, Stretch{numbers, const_bytes(codes), table.bits, x}, A(1));
  });
  const int64_t numel = out.numel();
  const uint8_t* missed = const_bytes(codes) + code_bytes(numel, table.bits);
  for (int64_t run = 0; run < code_runs<T>(numel); ++run) {
    if (missed[run] == 0) continue;
    const int64_t begin = run * kCodeRun<T>;
    std::fill(x + begin, x + std::min(begin + kCodeRun<T>, numel), store<T>(bit_cast<A>(kNaN<A>)));
  }
}

Tensor pack_codes_cpu(Tensor q, Tensor values, std::optional<Tensor> scale, int64_t inner, int64_t bits) {
  constexpr const char* op = "pack_codes";
  const CodeTable table(op, "q", q, values, scale, inner, bits);
  const Tensor codes = empty_vector(packed_bytes(op, "q", q, table.bits), ScalarType::Byte, q);
  std::atomic<bool> missed = false;
  dispatch_elements(op, "q", q, [&](auto type) { pack_loop(type, table, q, codes, missed); });
  return missed ? empty_vector(0, ScalarType::Byte, q) : codes;
}

void unpack_codes_cpu(
    Tensor codes, Tensor values, std::optional<Tensor> scale, int64_t inner, int64_t bits, Tensor out) {
  constexpr const char* op = "unpack_codes";
  const CodeTable table(op, "out", out, values, scale, inner, bits);
  check_codes(op, codes, out, packed_bytes(op, "out", out, table.bits));
  dispatch_elements(op, "out", out, [&](auto type) { unpack_loop(type, table, codes, out); });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("pack_codes", TORCH_BOX(&pack_codes_cpu));
  m.impl("unpack_codes", TORCH_BOX(&unpack_codes_cpu));
}

}  // namespace ste_ops
