// Heaviside, sign and ternary, and the backward of those whose surrogate saves a mask.
#include "ops/binarize/binarize.h"

#include <algorithm>

#include "cpu/masked.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// What the output holds for an element, and whether the gradient passes.
template <class Binarizer, class S, class T>
struct Binarize {
  Binarizer binarizer;
  S surrogate;

  STE_OPS_INLINE Masked<T> operator()(T x, int64_t) const {
    auto value = compare(x);
    if constexpr (S::saves == Saves::mask) return {binarized_bits(binarizer, x, value), surrogate.passes(value)};
    return {binarized_bits(binarizer, x, value), false};
  }
};

// The same for a surrogate that saves no mask.
template <class F, class T>
struct Unmasked {
  F f;
  const T* x;
  T* out;

  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = bit_cast<T>(f(x[i], i).out); }
};

template <class Binarizer, class S, class T>
void binarize_loop(Type<T>, Binarizer binarizer, S surrogate, const Binarized& call) {
  if (call.parameters) {
    surrogate = S(call.parameters[0], call.parameters[1]);
    binarizer = with_threshold(binarizer, call.parameters);
  }
  const Binarize<Binarizer, S, T> f{binarizer, surrogate};
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  uint8_t* mask = mutable_bytes(call.mask);
  parallel_aligned(call.x.numel(), kWord, [&](int64_t begin, int64_t end) {
    if constexpr (S::saves == Saves::mask) {
      masked_loop(f, x, out, mask, begin, end);
    } else {
      each(Unmasked<decltype(f), T>{f, x, out}, begin, end);
    }
  });
}

template <class Binarizer>
std::tuple<Tensor, Tensor> binarize(
    const char* op, const Binarizer& binarizer, const Tensor& x, int64_t surrogate, double a, double b,
    const double* parameters = nullptr) {
  const Binarized call = prepare_binarize(op, x, surrogate, parameters);
  dispatch_binarize(op, x, surrogate, a, b, [&](auto type, const auto& s) { binarize_loop(type, binarizer, s, call); });
  return {call.out, call.mask};
}

std::tuple<Tensor, Tensor> heaviside_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize("heaviside", Heaviside(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> heaviside_from_zero_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize("heaviside_from_zero", HeavisideFromZero(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> sign_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize("sign", Sign(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> ternary_cpu(Tensor x, int64_t surrogate, double a, double b, double threshold) {
  return binarize("ternary", Ternary{threshold}, x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> binarize_held_cpu(Tensor x, std::string step, int64_t surrogate, Tensor parameters) {
  constexpr const char* op = "binarize_held";
  const double* numbers = numbers_of(op, "parameters", parameters, step == "ternary" ? 3 : 2, x);
  return with_binarizer(
      op, step, [&](const auto& binarizer) { return binarize(op, binarizer, x, surrogate, 1, 1, numbers); });
}

template <class T>
struct Multiply {
  arithmetic_t<T> factor;
  T* x;

  STE_OPS_INLINE void operator()(int64_t i) const { x[i] = store<T>(load(x[i]) * factor); }
};

// Elements that the first-level cache holds between the choice and the product.
constexpr int64_t kFactorTile = 2048;

template <class T>
void binarize_backward_loop(Type<T>, const Elementwise& call, const Tensor& mask, double factor) {
  using U = bits_t<T>;
  const U* grad = const_data<U>(call.x);
  const uint8_t* passes = const_bytes(mask);
  T* out = mutable_data<T>(call.out);
  parallel_aligned(call.x.numel(), kWord, [&](int64_t begin, int64_t end) {
    const int64_t tile = factor == 1 ? end - begin : kFactorTile;
    for (int64_t i = begin; i < end; i += tile) {
      const int64_t stop = std::min(end, i + tile);
      where_loop(grad, passes, reinterpret_cast<U*>(out), i, stop);
      if (factor != 1) each(Multiply<T>{arithmetic_t<T>(factor), out}, i, stop);
    }
  });
}

Tensor backward(const char* op, const Tensor& grad, const Tensor& mask, double factor) {
  const Elementwise call = prepare_binarize_backward(op, grad, mask);
  dispatch_elements(op, "grad", grad, [&](auto type) { binarize_backward_loop(type, call, mask, factor); });
  return call.out;
}

Tensor binarize_backward_cpu(Tensor grad, Tensor mask, double factor) {
  return backward("binarize_backward", grad, mask, factor);
}

Tensor binarize_backward_held_cpu(Tensor grad, Tensor mask, Tensor factor) {
  constexpr const char* op = "binarize_backward_held";
  return backward(op, grad, mask, *numbers_of(op, "factor", factor, 1, grad));
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("heaviside", TORCH_BOX(&heaviside_cpu));
  m.impl("sign", TORCH_BOX(&sign_cpu));
  m.impl("ternary", TORCH_BOX(&ternary_cpu));
  m.impl("heaviside_from_zero", TORCH_BOX(&heaviside_from_zero_cpu));
  m.impl("binarize_held", TORCH_BOX(&binarize_held_cpu));
  m.impl("binarize_backward", TORCH_BOX(&binarize_backward_cpu));
  m.impl("binarize_backward_held", TORCH_BOX(&binarize_backward_held_cpu));
}

}  // namespace ste_ops
