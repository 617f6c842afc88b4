#include "../binarize.h"

#include "../library.h"
#include "loop.h"

namespace ste_ops {
namespace {

// Elements of one pass over the registers: a whole number of mask bytes, small enough to stay in the first-level cache.
constexpr int64_t kTile = 128;

// Every loop over a full tile has a constant trip count and one job, which is what lets each of them vectorize.
template <class Step, class S, class T>
STE_OPS_INLINE void binarize_tile(const S& surrogate, const T* x, T* out, uint8_t* mask, int64_t count) {
  const Step step;
  arithmetic_t<T> value[kTile];
  for (int64_t i = 0; i < count; ++i) value[i] = load(x[i]);
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(step(value[i]));
  if constexpr (S::saves == Saves::mask) {
    uint8_t passes[kTile];
    for (int64_t i = 0; i < count; ++i) passes[i] = surrogate.passes(value[i]);
    if (count % 8 != 0) memset(passes + count, 0, 8 - count % 8);
    for (int64_t j = 0; j < mask_bytes(count); ++j) mask[j] = pack8(passes + 8 * j);
  }
}

template <class Step, class S, class T>
STE_OPS_CLONES void binarize_loop(S surrogate, const T* x, T* out, uint8_t* mask, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kTile <= end; i += kTile) binarize_tile<Step>(surrogate, x + i, out + i, mask + i / 8, kTile);
  if (i < end) binarize_tile<Step>(surrogate, x + i, out + i, mask + i / 8, end - i);
}

template <class U>
STE_OPS_CLONES void mask_loop(const U* grad, const uint8_t* mask, U* out, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kTile <= end; i += kTile) {
    uint8_t passes[kTile];
    for (int64_t j = 0; j < kTile / 8; ++j) unpack8(mask[i / 8 + j], passes + 8 * j);
    for (int64_t k = 0; k < kTile; ++k) out[i + k] = grad[i + k] & U(-U(passes[k]));
  }
  for (; i < end; ++i) out[i] = mask_bit(mask, i) ? grad[i] : U(0);
}

template <class Step>
std::tuple<Tensor, Tensor> binarize_cpu(const char* op, const Tensor& x, int64_t surrogate, double a, double b) {
  return binarize(op, x, surrogate, a, b,
                  [](auto s, auto type, const void* x, void* out, uint8_t* mask, int64_t numel) {
                    using T = typename decltype(type)::type;
                    parallel_aligned(numel, kTile, [&](int64_t begin, int64_t end) {
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
    parallel_aligned(numel, kTile, [&](int64_t begin, int64_t end) {
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
