#include "../binarize.h"

#include "../core/ordered.h"
#include "../library.h"
#include "masked.h"

namespace ste_ops {
namespace {

// One element of a step: what the output holds and whether the gradient passes.
template <class Step, class S, class T>
struct Binarize {
  S surrogate;

  STE_OPS_INLINE Masked<T> operator()(T x, int64_t) const {
    auto value = compare(x);
    if constexpr (S::saves == Saves::mask) return {level_bits<T>(Step()(value)), surrogate.passes(value)};
    return {level_bits<T>(Step()(value)), false};
  }
};

// A step whose surrogate saves nothing.
template <class F, class T>
struct Unmasked {
  F f;
  const T* x;
  T* out;

  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = bit_cast<T>(f(x[i], i).out); }
};

template <class Step>
std::tuple<Tensor, Tensor> binarize_cpu(const char* op, const Tensor& x, int64_t surrogate, double a, double b) {
  return binarize(op, x, surrogate, a, b,
                  [](auto s, auto type, const void* x, void* out, uint8_t* mask, int64_t numel) {
                    using T = typename decltype(type)::type;
                    Binarize<Step, decltype(s), T> f{s};
                    parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) {
                      if constexpr (s.saves == Saves::mask) {
                        masked_loop(f, static_cast<const T*>(x), static_cast<T*>(out), mask, begin, end);
                      } else {
                        each(Unmasked<decltype(f), T>{f, static_cast<const T*>(x), static_cast<T*>(out)}, begin, end);
                      }
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
    parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) {
      where_loop(static_cast<const U*>(grad), mask, static_cast<U*>(out), begin, end);
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
