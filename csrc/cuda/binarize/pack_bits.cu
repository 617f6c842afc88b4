// Bits of the signs of numbers along a dimension, and back: a thread for each byte.
#include "core/binarize/bits.h"
#include "cuda/launch.cuh"
#include "ops/binarize/products.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kByteThreads = 256;

struct Along {
  int64_t outer, numbers, inner;
  STE_HD int64_t bytes() const { return mask_bytes(numbers); }
  STE_HD int64_t size() const { return outer * bytes() * inner; }
};

// Moves: reads n * T, writes bytes.
template <class T>
__global__ void __launch_bounds__(kByteThreads) pack_bits_kernel(const T* x, Along along, uint8_t* bits) {
  for (int64_t i = grid_index(); i < along.size(); i += grid_stride()) {
    const int64_t inner = i % along.inner, byte = i / along.inner % along.bytes(), first = byte * 8;
    const T* own = x + (i / along.inner / along.bytes() * along.numbers + first) * along.inner + inner;
    uint32_t word = 0;
    for (int j = 0; j < 8 && first + j < along.numbers; ++j) word |= IsPlus()(own[j * along.inner]) << j;
    bits[i] = uint8_t(word);
  }
}

// Moves: reads bytes, writes n * T.
template <class T>
__global__ void __launch_bounds__(kByteThreads) unpack_bits_kernel(const uint8_t* bits, Along along, T* out) {
  for (int64_t i = grid_index(); i < along.size(); i += grid_stride()) {
    const int64_t inner = i % along.inner, byte = i / along.inner % along.bytes(), first = byte * 8;
    T* own = out + (i / along.inner / along.bytes() * along.numbers + first) * along.inner + inner;
    const uint32_t word = bits[i];
    for (int j = 0; j < 8 && first + j < along.numbers; ++j) {
      own[j * along.inner] = store<T>(arithmetic_t<T>((word >> j & 1u) ? 1 : -1));
    }
  }
}

Tensor pack_bits_cuda(Tensor x, int64_t dim) {
  constexpr const char* op = "pack_bits";
  const Launcher launch(x, op);
  const BitsCall call(op, "x", x, dim, dim >= 0 && dim < x.dim() ? x.size(dim) : 0);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[size_t(dim)] = call.bytes();
  const Tensor bits = new_contiguous(sizes, ScalarType::Byte, x);
  const Along along = {call.outer, call.numbers, call.inner};
  dispatch_elements(op, "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(
        pack_bits_kernel<T>, blocks_for(along.size(), kByteThreads), kByteThreads, const_data<T>(x), along,
        mutable_data<uint8_t>(bits));
  });
  return bits;
}

void unpack_bits_cuda(Tensor bits, int64_t dim, Tensor out) {
  constexpr const char* op = "unpack_bits";
  const Launcher launch(out, op);
  const BitsCall call(op, "out", out, dim, dim >= 0 && dim < out.dim() ? out.size(dim) : 0);
  check_bits(op, bits, out, dim, call);
  const Along along = {call.outer, call.numbers, call.inner};
  dispatch_elements(op, "out", out, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(
        unpack_bits_kernel<T>, blocks_for(along.size(), kByteThreads), kByteThreads, const_data<uint8_t>(bits), along,
        mutable_data<T>(out));
  });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits_cuda));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cuda));
}

}  // namespace ste_ops
