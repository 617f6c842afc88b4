#include "ops/binarize.h"

#include "core/ordered.h"
#include "cpu/binarize/curve.h"
#include "cpu/masked.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// One element of a step: what the output holds and whether the gradient passes.
template <class Step, class S, class T>
struct Binarize {
  Step step;
  S surrogate;

  STE_OPS_INLINE Masked<T> operator()(T x, int64_t) const {
    auto value = compare(x);
    if constexpr (S::saves == Saves::mask) return {step_bits(step, x, value), surrogate.passes(value)};
    return {step_bits(step, x, value), false};
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

constexpr int64_t kScaledTile = 2048;

template <class T>
struct Scaled {
  arithmetic_t<T> factor;
  T* x;

  STE_OPS_INLINE void operator()(int64_t i) const { x[i] = store<T>(load(x[i]) * factor); }
};

template <class Step>
std::tuple<Tensor, Tensor> binarize_cpu(
    const char* op, const Step& step, const Tensor& x, int64_t surrogate, double a, double b) {
  return binarize(
      op, x, surrogate, a, b, [&](auto s, auto type, const void* x, void* out, uint8_t* mask, int64_t numel) {
        using T = typename decltype(type)::type;
        Binarize<Step, decltype(s), T> f{step, s};
        parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) {
          if constexpr (decltype(s)::saves == Saves::mask) {
            masked_loop(f, static_cast<const T*>(x), static_cast<T*>(out), mask, begin, end);
          } else {
            each(Unmasked<decltype(f), T>{f, static_cast<const T*>(x), static_cast<T*>(out)}, begin, end);
          }
        });
      });
}

std::tuple<Tensor, Tensor> heaviside_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize_cpu("heaviside", Heaviside(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> sign_cpu(Tensor x, int64_t surrogate, double a, double b) {
  return binarize_cpu("sign", Sign(), x, surrogate, a, b);
}

std::tuple<Tensor, Tensor> ternary_cpu(Tensor x, int64_t surrogate, double a, double b, double threshold) {
  return binarize_cpu("ternary", Ternary{threshold}, x, surrogate, a, b);
}

Tensor binarize_backward_cpu(Tensor grad, Tensor mask, double factor) {
  return binarize_backward(grad, mask, [&](auto type, const void* grad, const uint8_t* mask, void* out, int64_t numel) {
    using T = typename decltype(type)::type;
    using U = bits_t<T>;
    parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) {
      // With a factor in tiles, which it finds in the first-level cache.
      const int64_t tile = factor == 1 ? end - begin : kScaledTile;
      for (int64_t i = begin; i < end; i += tile) {
        const int64_t stop = std::min(end, i + tile);
        where_loop(static_cast<const U*>(grad), mask, static_cast<U*>(out), i, stop);
        if (factor != 1) each(Scaled<T>{arithmetic_t<T>(factor), static_cast<T*>(out)}, i, stop);
      }
    });
  });
}

template <int order>
Tensor curve_cpu(
    const char* op, std::initializer_list<std::pair<const char*, const Tensor*>> factors, const Tensor& x,
    int64_t surrogate, double a, double b, const std::optional<Tensor>& parameters) {
  return curve(
      op, factors, x, surrogate, a, b, parameters,
      [](auto s, auto type, const double* parameters, const void* const* factors, const void* x, void* out,
         int64_t numel) {
        using T = typename decltype(type)::type;
        using S = decltype(s);
        if (parameters) s = S(parameters[0], parameters[1]);
        const T* const typed[2] = {static_cast<const T*>(factors[0]), static_cast<const T*>(factors[1])};
        parallel_aligned(numel, kCurveTile, [&](int64_t begin, int64_t end) {
          curve_range<order>(s, typed, static_cast<const T*>(x), static_cast<T*>(out), begin, end);
        });
      });
}

Tensor curve_backward_cpu(
    Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  return curve_cpu<1>("curve_backward", {{"grad", &grad}}, x, surrogate, a, b, parameters);
}

Tensor curve_second_cpu(
    Tensor upper, Tensor grad, Tensor x, int64_t surrogate, double a, double b, std::optional<Tensor> parameters) {
  return curve_cpu<2>("curve_second", {{"upper", &upper}, {"grad", &grad}}, x, surrogate, a, b, parameters);
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("heaviside", TORCH_BOX(&heaviside_cpu));
  m.impl("sign", TORCH_BOX(&sign_cpu));
  m.impl("ternary", TORCH_BOX(&ternary_cpu));
  m.impl("binarize_backward", TORCH_BOX(&binarize_backward_cpu));
  m.impl("curve_backward", TORCH_BOX(&curve_backward_cpu));
  m.impl("curve_second", TORCH_BOX(&curve_second_cpu));
}

}  // namespace ste_ops
