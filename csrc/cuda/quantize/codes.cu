// Codes of what quantizers put out.
#include "cuda/vector.cuh"
#include "ops/library.h"
#include "ops/mask.h"
#include "ops/quantize/codes.h"

namespace ste_ops {
namespace {

// The scale of each element of a vector; of all where `scale` is null.
template <class A>
struct ScaleWalk {
  const A* scale;
  const Groups& groups;
  GroupWalk walk;
  int64_t group = -1;
  Step<A> step{A(1), A(1), A(0)};

  __device__ ScaleWalk(const A* scale, const Groups& groups, int64_t begin) : scale(scale), groups(groups) {
    if (scale != nullptr) walk = GroupWalk(groups, begin);
  }
  __device__ Step<A> next() {
    if (scale == nullptr) return step;
    if (walk.group != group) step = step_of(scale[group = walk.group], A(0));
    walk.next(groups);
    return step;
  }
};

// A vector's codes, of 2 to 64 bits together, the first lowest. Lanes that fill one 32-bit word join theirs, and the
// first writes it. Whole warps only.
template <class T>
__device__ void store_codes(uint8_t* codes, int bits, int64_t begin, int64_t numel, uint64_t own) {
  const int of_lane = Vector<T>::size * bits, lanes = of_lane < 32 ? 32 / of_lane : 1;
  const int place = lane_index() % lanes;
  if (lanes > 1) {
    uint32_t word = uint32_t(own) << (place * of_lane);
    for (int k = 1; k < lanes; k *= 2) word |= __shfl_xor_sync(kFullWarp, word, k);
    own = word;
  }
  if (place != 0 || begin >= numel) return;
  uint8_t* out = codes + begin * bits / 8;
  const int bytes = of_lane * lanes / 8;
  if (begin + int64_t(Vector<T>::size) * lanes > numel) {
    for (uint8_t* last = codes + code_bytes(numel, bits); out < last; ++out, own >>= 8) *out = uint8_t(own);
  } else if (bytes == 8) {
    *reinterpret_cast<uint64_t*>(out) = own;
  } else {
    *reinterpret_cast<uint32_t*>(out) = uint32_t(own);
  }
}

template <class T>
__device__ uint64_t load_codes(const uint8_t* codes, int bits, int64_t begin, int64_t numel) {
  if (begin >= numel) return 0;
  const int of_lane = Vector<T>::size * bits;
  const uint8_t* own = codes + begin * bits / 8;
  if (of_lane < 8) return uint64_t(*own) >> (begin * bits % 8);
  if (begin + Vector<T>::size > numel) {
    uint64_t word = 0;
    const uint8_t* last = codes + code_bytes(numel, bits);
    for (int shift = 0; own < last; ++own, shift += 8) word |= uint64_t(*own) << shift;
    return word;
  }
  switch (of_lane) {
    case 8: return *own;
    case 16: return *reinterpret_cast<const uint16_t*>(own);
    case 32: return *reinterpret_cast<const uint32_t*>(own);
    default: return *reinterpret_cast<const uint64_t*>(own);
  }
}

// `missed` has a byte for each run: 1 where an element of it is none of the values.
// Moves: reads n * T + values * A + scales * A (again values * A + scales * A), writes n * bits / 8 + runs.
template <class T, class A>
__global__ void __launch_bounds__(kElementwiseThreads, 6) pack_codes_kernel(
    const T* x, const A* values, int count, const A* scale, Groups groups, int bits, uint8_t* codes, uint8_t* missed,
    int64_t numel, bool aligned) {
  const auto levels = Levels<A>::of(values, count);
#pragma unroll 1
  for (int k = 0; k < kChunksPerWarp; ++k) {
    const int64_t begin = vector_begin<T>(k);
    ScaleWalk<A> scales(scale, groups, begin < numel ? begin : 0);
    const Vector<T> v = read_vector(x, begin, numel, aligned);
    uint64_t own = 0;
    bool misses = false;
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      const Step<A> step = scales.next();
      const int code = levels.exact(v.value[i], step.scale, step.inverse);
      const bool counts = begin + i < numel;
      misses |= counts && code < 0;
      own |= uint64_t(counts && code > 0 ? code : 0) << (i * bits);
    }
    store_codes<T>(codes, bits, begin, numel, own);
    const int any = __any_sync(kFullWarp, misses);
    if (lane_index() == 0 && begin < numel) missed[begin / kCodeRun<T>] = uint8_t(any != 0);
  }
}

// Moves: reads n * bits / 8 + runs + values * A + scales * A (again values * A + scales * A), writes n * T.
template <class T, class A>
__global__ void __launch_bounds__(kElementwiseThreads) unpack_codes_kernel(
    const uint8_t* codes, const uint8_t* missed, const A* values, const A* scale, Groups groups, int bits, T* out,
    int64_t numel, bool aligned) {
#pragma unroll 1
  for (int k = 0; k < kChunksPerWarp; ++k) {
    const int64_t begin = vector_begin<T>(k);
    if (begin >= numel) return;
    ScaleWalk<A> scales(scale, groups, begin);
    const uint64_t own = load_codes<T>(codes, bits, begin, numel);
    const bool misses = missed[begin / kCodeRun<T>] != 0;
    Vector<T> v;
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      const int code = int(own >> (i * bits)) & ((1 << bits) - 1);
      const A scaled = values[code] * scales.next().scale;
      v.value[i] = store<T>(misses ? bit_cast<A>(kNaN<A>) : scaled);
    }
    write_vector(out, begin, numel, aligned, v);
  }
}

template <class A>
const A* scale_of(const CodeTable& table) {
  return table.scale ? const_data<A>(*table.scale) : nullptr;
}

template <class T>
void launch_pack(const Launcher& launch, Type<T>, const CodeTable& table, const Tensor& q, const Tensor& codes) {
  using A = arithmetic_t<T>;
  const T* x = const_data<T>(q);
  uint8_t* bytes = mutable_bytes(codes);
  const int64_t numel = q.numel();
  launch(
      pack_codes_kernel<T, A>, elementwise_blocks<T>(numel), kElementwiseThreads, x, const_data<A>(table.values),
      table.count(), scale_of<A>(table), table.groups, table.bits, bytes, bytes + code_bytes(numel, table.bits), numel,
      aligned16(x));
}

template <class T>
void launch_unpack(const Launcher& launch, Type<T>, const CodeTable& table, const Tensor& codes, const Tensor& out) {
  using A = arithmetic_t<T>;
  T* x = mutable_data<T>(out);
  const uint8_t* bytes = const_bytes(codes);
  const int64_t numel = out.numel();
  launch(
      unpack_codes_kernel<T, A>, elementwise_blocks<T>(numel), kElementwiseThreads, bytes,
      bytes + code_bytes(numel, table.bits), const_data<A>(table.values), scale_of<A>(table), table.groups, table.bits,
      x, numel, aligned16(x));
}

Tensor pack_codes_cuda(Tensor q, Tensor values, std::optional<Tensor> scale, int64_t inner, int64_t bits) {
  constexpr const char* op = "pack_codes";
  const Launcher launch(q, op);
  const CodeTable table(op, "q", q, values, scale, inner, bits);
  const Tensor codes = empty_vector(packed_bytes(op, "q", q, table.bits), ScalarType::Byte, q);
  dispatch_elements(op, "q", q, [&](auto type) { launch_pack(launch, type, table, q, codes); });
  return codes;
}

void unpack_codes_cuda(
    Tensor codes, Tensor values, std::optional<Tensor> scale, int64_t inner, int64_t bits, Tensor out) {
  constexpr const char* op = "unpack_codes";
  const Launcher launch(out, op);
  const CodeTable table(op, "out", out, values, scale, inner, bits);
  check_codes(op, codes, out, packed_bytes(op, "out", out, table.bits));
  dispatch_elements(op, "out", out, [&](auto type) { launch_unpack(launch, type, table, codes, out); });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("pack_codes", TORCH_BOX(&pack_codes_cuda));
  m.impl("unpack_codes", TORCH_BOX(&unpack_codes_cuda));
}

}  // namespace ste_ops
