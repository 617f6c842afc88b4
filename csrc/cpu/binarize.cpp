#include "../binarize.h"

#include "../core/ordered.h"
#include "../library.h"
#include "pack.h"

namespace ste_ops {
namespace {

// Stores retire in order, so a store that waits for its cache line holds up those of the lanes and the mask behind it.
// Asking for the lines some tiles ahead keeps the queue moving. (Past the end of the memory it does nothing.)
template <class T>
STE_OPS_INLINE void prefetch_for_write(T* tile, int64_t count) {
  constexpr int64_t kAheadBytes = 4096, kLine = 64;
  char* ahead = reinterpret_cast<char*>(tile) + kAheadBytes;
  for (int64_t byte = 0; byte < count * int64_t(sizeof(T)); byte += kLine) __builtin_prefetch(ahead + byte, 1, 3);
}

// The loop has a constant trip count and writes to memory of its own, which is what lets it vectorize.
template <class Step, class S, class T>
STE_OPS_INLINE void binarize_tile(const S& surrogate, const T* x, T* out, uint8_t* mask) {
  using U = bits_t<T>;
  const Step step;
  U bits[kTile<T>], lanes[kTile<T>];
  for (int64_t i = 0; i < kTile<T>; ++i) {
    auto value = compare(x[i]);
    bits[i] = level_bits<T>(step(value));
    if constexpr (S::saves == Saves::mask) lanes[i] = surrogate.passes(value) ? ~U(0) : U(0);
  }
  memcpy(out, bits, sizeof(bits));
  if constexpr (S::saves == Saves::mask) pack_tile(lanes, mask);
}

template <class Step, class S, class T>
STE_OPS_CLONES void binarize_loop(S surrogate, const T* x, T* out, uint8_t* mask, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kTile<T> <= end; i += kTile<T>) {
    if constexpr (S::saves == Saves::mask) prefetch_for_write(out + i, kTile<T>);
    binarize_tile<Step>(surrogate, x + i, out + i, mask + i / 8);
  }
  if (i == end) return;
  T last_x[kTile<T>] = {}, last_out[kTile<T>];
  uint8_t last_mask[kTile<T> / 8];
  memcpy(last_x, x + i, (end - i) * sizeof(T));
  binarize_tile<Step>(surrogate, last_x, last_out, last_mask);
  memcpy(out + i, last_out, (end - i) * sizeof(T));
  if constexpr (S::saves == Saves::mask) {
    memcpy(mask + i / 8, last_mask, mask_bytes(end - i));
    if ((end - i) % 8 != 0) mask[end / 8] &= uint8_t((1u << end % 8) - 1);
  }
}

template <class U>
STE_OPS_CLONES void mask_loop(const U* grad, const uint8_t* mask, U* out, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kTile<U> <= end; i += kTile<U>) {
    uint8_t passes[kTile<U>];
    for (int64_t j = 0; j < kTile<U> / 8; ++j) unpack8(mask[i / 8 + j], passes + 8 * j);
    for (int64_t k = 0; k < kTile<U>; ++k) out[i + k] = grad[i + k] & U(-U(passes[k]));
  }
  for (; i < end; ++i) out[i] = mask_bit(mask, i) ? grad[i] : U(0);
}

template <class Step>
std::tuple<Tensor, Tensor> binarize_cpu(const char* op, const Tensor& x, int64_t surrogate, double a, double b) {
  return binarize(op, x, surrogate, a, b,
                  [](auto s, auto type, const void* x, void* out, uint8_t* mask, int64_t numel) {
                    using T = typename decltype(type)::type;
                    parallel_aligned(numel, kTile<T>, [&](int64_t begin, int64_t end) {
                      binarize_loop<Step>(s, static_cast<const T*>(x), static_cast<T*>(out), mask, begin, end);
                    });
                  });
}

std::tuple<Tensor, Tensor> heaviside_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize_cpu<Heaviside>("heaviside", x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> sign_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize_cpu<Sign>("sign", x, surrogate, a, b);
}

Tensor binarize_backward_cpu(Tensor grad, Tensor mask) {
  return binarize_backward(grad, mask, [](auto type, const void* grad, const uint8_t* mask, void* out, int64_t numel) {
    using U = bits_t<typename decltype(type)::type>;
    parallel_aligned(numel, kTile<U>, [&](int64_t begin, int64_t end) {
      mask_loop(static_cast<const U*>(grad), mask, static_cast<U*>(out), begin, end);
    });
  });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("heaviside", TORCH_BOX(&heaviside_cpu));
  m.impl("sign", TORCH_BOX(&sign_cpu));
  m.impl("binarize_backward", TORCH_BOX(&binarize_backward_cpu));
}

}  // namespace ste_ops
