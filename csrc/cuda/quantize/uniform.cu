#include "cuda/quantize/steps.cuh"
#include "cuda/reduce.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <int kMasks>
Tensor quantize(const char* op, const Tensor& x, const Quantizer& quantizer, int64_t axis, MaskPointers masks) {
  Launcher launch(x, op);
  return map_groups(op, x, quantizer.shared() ? -1 : axis, [&](const Groups& groups, const auto* x, auto* out) {
    using A = decltype(load(*x));
    const Uniform<A> op(quantizer.quant_min, quantizer.quant_max);
    if (groups.count() == 1) {
      launch_quantize<kMasks>(launch, op, SharedStep<A>(quantizer), groups, x, out, masks);
    } else {
      launch_quantize<kMasks>(launch, op, DeviceSteps<A>(quantizer), groups, x, out, masks);
    }
  });
}

std::tuple<Tensor, Tensor> fake_quantize_cuda(
    Tensor x, std::optional<Tensor> scale, std::optional<Tensor> zero_point, double scale_number,
    double zero_point_number, int64_t quant_min, int64_t quant_max, int64_t axis) {
  constexpr const char* op = "fake_quantize";
  const Quantizer quantizer(op, x, scale, zero_point, scale_number, zero_point_number, quant_min, quant_max, axis);
  Tensor mask = new_mask(x);
  return {quantize<1>(op, x, quantizer, axis, {mutable_bytes(mask)}), mask};
}

Tensor lsq_cuda(Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis) {
  const Quantizer quantizer("lsq", x, scale, std::nullopt, 0, 0, quant_min, quant_max, axis);
  return quantize<0>("lsq", x, quantizer, axis, {});
}

// The gradient of x on the way, and what each element adds to that of its scale. A thread keeps the steps of its lanes.
// Moves: reads 2 * n * T + steps * A, writes n * T.
template <class T>
struct LsqTerms {
  static constexpr int N = Vector<T>::size;
  using A = arithmetic_t<T>;
  Uniform<A> op;
  DeviceSteps<A> steps;
  const T *grad, *x;
  T* of_x;

  struct Lanes {
    const LsqTerms& terms;
    Step<A> step[N];

    __device__ void operator()(int64_t begin, int64_t end, double* adds) const {
      const T *grad = terms.grad + begin, *x = terms.x + begin;
      T* of_x = terms.of_x + begin;
      const int64_t count = end - begin;
      Vector<T> g = read_vector(grad, 0, count, aligned16(grad)), v = read_vector(x, 0, count, aligned16(x));
#pragma unroll
      for (int k = 0; k < N; ++k) {
        bool inside;
        const A slope = terms.op.slope(load(v.value[k]), step[k], inside);
        adds[k] = double(load(g.value[k])) * double(slope);
        if (!inside) g.value[k] = T{};
      }
      write_vector(of_x, 0, count, aligned16(of_x), g);
    }
  };

  __device__ Lanes for_lanes(const int64_t* group) const {
    Lanes lanes{*this, {}};
#pragma unroll
    for (int k = 0; k < N; ++k)
      lanes.step[k] = k > 0 && group[k] == group[k - 1] ? lanes.step[k - 1] : steps.at(group[k]);
    return lanes;
  }
};

// The sum times a factor, in the dtype of the gradient.
// Moves: reads 0, writes groups * S.
template <class S>
struct StoreTotal {
  S* out;
  double factor;
  __device__ void operator()(int64_t group, double total) const {
    out[group] = store<S>(arithmetic_t<S>(total * factor));
  }
};

template <class T, class Terms>
void reduce_into(const Launcher& launch, const Groups& groups, const Terms& terms, double factor, const Tensor& out) {
  dispatch_floating("lsq_backward", "scale", out, [&](auto type) {
    using S = typename decltype(type)::type;
    reduce_groups<Additive, T>(
        launch, groups, out, terms, StoreTotal<S>{static_cast<S*>(out.mutable_data_ptr()), factor});
  });
}

std::tuple<Tensor, Tensor> lsq_backward_cuda(
    Tensor grad, Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis, double grad_scale) {
  Launcher launch(x);
  const Quantizer quantizer("lsq", x, scale, std::nullopt, 0, 0, quant_min, quant_max, axis);
  return lsq_backward(
      grad, x, scale, quantizer.shared() ? -1 : axis,
      [&](const Groups& groups, const auto* grad, const auto* x, auto* of_x, const Tensor& of_scale) {
        using T = std::remove_pointer_t<decltype(of_x)>;
        using A = arithmetic_t<T>;
        const LsqTerms<T> terms{Uniform<A>(quant_min, quant_max), DeviceSteps<A>(quantizer), grad, x, of_x};
        reduce_into<T>(launch, groups, terms, grad_scale, of_scale);
      });
}

// The kernels make what they quantize with from alpha: the host does not know it.
// Moves: reads A, writes 0.
template <class A>
struct DevicePact {
  static constexpr bool kShared = true;
  const A* alpha;
  A steps;
  // The step carries what all elements share: alpha, n / alpha and alpha / n.
  __device__ Step<A> at(int64_t) const {
    const Pact<A> pact = Pact<A>::of(*alpha, steps);
    return {pact.alpha, pact.up, pact.down};
  }
};

template <class A>
struct PactByStep {
  __device__ Quantized<A> operator()(A x, const Step<A>& step) const {
    return Pact<A>{step.scale, step.inverse, step.zero_point}(x, step);
  }
};

std::tuple<Tensor, Tensor, Tensor> pact_cuda(Tensor x, Tensor alpha, int64_t bits) {
  Launcher launch(x);
  const int64_t steps = steps_of_bits("pact", bits);
  const Parameter parameter("pact", "alpha", alpha, 0, x, -1);
  Tensor inside = new_mask(x), above = new_mask(x);
  Tensor out = map_elements("pact", x, [&](const auto* x, auto* out, int64_t numel) {
    using A = decltype(load(*x));
    launch_quantize<2>(
        launch, PactByStep<A>(), DevicePact<A>{parameter.template data<A>(), A(steps)}, whole_tensor(numel), x, out,
        {mutable_bytes(inside), mutable_bytes(above)});
  });
  return {out, inside, above};
}

// The gradient of x on the way, and what each element adds to that of alpha.
// Moves: reads n * T + 2 * (n / 8), writes n * T.
template <class T>
struct PactTerms {
  const T* grad;
  const uint8_t *inside, *above;
  T* of_x;
  int64_t numel;

  __device__ PactTerms for_lanes(const int64_t*) const { return *this; }

  __device__ void operator()(int64_t begin, int64_t end, double* adds) const {
    Vector<T> g = read_vector(grad, begin, end, aligned16(grad));
    const uint32_t inside_bits = load_mask_bits<T>(inside, begin, numel);
    const uint32_t above_bits = load_mask_bits<T>(above, begin, numel);
#pragma unroll
    for (int k = 0; k < Vector<T>::size; ++k) {
      adds[k] = above_bits >> k & 1u ? double(load(g.value[k])) : 0.0;
      if (!(inside_bits >> k & 1u)) g.value[k] = T{};
    }
    write_vector(of_x, begin, end, aligned16(of_x), g);
  }
};

std::tuple<Tensor, Tensor> pact_backward_cuda(Tensor grad, Tensor inside, Tensor above, Tensor alpha) {
  Launcher launch(grad);
  return pact_backward(
      grad, inside, above, alpha,
      [&](const auto* grad, const uint8_t* inside, const uint8_t* above, auto* of_x, int64_t numel,
          const Tensor& of_alpha) {
        using T = std::remove_pointer_t<decltype(of_x)>;
        reduce_into<T>(launch, whole_tensor(numel), PactTerms<T>{grad, inside, above, of_x, numel}, 1, of_alpha);
      });
}

std::tuple<Tensor, Tensor> dorefa_activation_cuda(Tensor x, int64_t bits) {
  Launcher launch(x);
  const int64_t steps = steps_of_bits("dorefa_activation", bits);
  Tensor mask = new_mask(x);
  Tensor out = map_elements("dorefa_activation", x, [&](const auto* x, auto* out, int64_t numel) {
    using A = decltype(load(*x));
    launch_quantize<1>(
        launch, UnitInterval<A>{A(steps)}, NoSteps<A>(), whole_tensor(numel), x, out, {mutable_bytes(mask)});
  });
  return {out, mask};
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_cuda));
  m.impl("lsq", TORCH_BOX(&lsq_cuda));
  m.impl("lsq_backward", TORCH_BOX(&lsq_backward_cuda));
  m.impl("pact", TORCH_BOX(&pact_cuda));
  m.impl("pact_backward", TORCH_BOX(&pact_backward_cuda));
  m.impl("dorefa_activation", TORCH_BOX(&dorefa_activation_cuda));
}

}  // namespace ste_ops
