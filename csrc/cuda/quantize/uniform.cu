// Fake quantization, LSQ, PACT and the activations of DoReFa.
#include "cuda/quantize/steps.cuh"
#include "cuda/reduce.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <template <class> class Op, int kMasks, class T>
void launch_steps(
    const Launcher& launch, Type<T> type, const Quantizer& quantizer, const Elementwise& call, MaskPointers masks) {
  using A = arithmetic_t<T>;
  const Groups groups = quantizer.groups_of(call.x);
  const Op<A> op = quantizer.element<Op, A>();
  if (groups.count() == 1) {
    launch_quantize<kMasks>(launch, type, op, SharedStep<A>(quantizer), groups, call, masks);
  } else {
    launch_quantize<kMasks>(launch, type, op, DeviceSteps<A>(quantizer), groups, call, masks);
  }
}

template <template <class> class Op>
std::tuple<Tensor, Tensor> masked_steps(
    const char* op, const Launcher& launch, const Quantizer& quantizer, const Tensor& x) {
  const Tensor mask = new_mask(x);
  const Elementwise call(x);
  dispatch_elements(
      op, "x", x, [&](auto type) { launch_steps<Op, 1>(launch, type, quantizer, call, {mutable_bytes(mask)}); });
  return {call.out, mask};
}

std::tuple<Tensor, Tensor> fake_quantize_cuda(
    Tensor x, std::optional<Tensor> scale, std::optional<Tensor> zero_point, double scale_number,
    double zero_point_number, int64_t quant_min, int64_t quant_max, int64_t axis) {
  constexpr const char* op = "fake_quantize";
  const Launcher launch(x, op);
  const Quantizer quantizer(op, x, scale, zero_point, scale_number, zero_point_number, quant_min, quant_max, axis);
  const bool affine = Quantizer::is_affine(zero_point, zero_point_number);
  return affine ? masked_steps<Affine>(op, launch, quantizer, x) : masked_steps<Uniform>(op, launch, quantizer, x);
}

template <template <class> class Op>
Tensor learned(const char* op, const Launcher& launch, const Quantizer& quantizer, const Tensor& x) {
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) { launch_steps<Op, 0>(launch, type, quantizer, call, {}); });
  return call.out;
}

Tensor lsq_cuda(Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis) {
  const Launcher launch(x, "lsq");
  return learned<Learned>("lsq", launch, lsq_quantizer(x, scale, quant_min, quant_max, axis), x);
}

std::tuple<Tensor, Tensor> lsq_masked_cuda(Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis) {
  const Launcher launch(x, "lsq");
  return masked_steps<Learned>("lsq", launch, lsq_quantizer(x, scale, quant_min, quant_max, axis), x);
}

Tensor lsq_plus_cuda(Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis) {
  const Launcher launch(x, "lsq_plus");
  return learned<LearnedOffset>(
      "lsq_plus", launch, lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis), x);
}

std::tuple<Tensor, Tensor> lsq_plus_masked_cuda(
    Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis) {
  const Launcher launch(x, "lsq_plus");
  return masked_steps<LearnedOffset>(
      "lsq_plus", launch, lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis), x);
}

// What each element adds to the gradients of its scale and its offset; that of x on the way, where kOfX is 1. A thread
// keeps the steps of its lanes.
// Moves: reads 2 * n * T + steps * A, writes kOfX * n * T.
template <class Op, int kOfX, class T>
struct LearnedTerms {
  static constexpr int N = Vector<T>::size;
  using A = arithmetic_t<T>;
  using Total = typename Op::Reduction::Total;
  Op op;
  DeviceSteps<A> steps;
  const T *grad, *x;
  T* of_x;

  struct Lanes {
    const LearnedTerms& terms;
    Step<A> step[N];

    __device__ void operator()(int64_t begin, int64_t end, Total* adds) const {
      const T *grad = terms.grad + begin, *x = terms.x + begin;
      const int64_t count = end - begin;
      Vector<T> g = read_vector(grad, 0, count, aligned16(grad)), v = read_vector(x, 0, count, aligned16(x));
#pragma unroll
      for (int k = 0; k < N; ++k) {
        bool inside;
        const A slope = terms.op.slope(load(v.value[k]), step[k], inside);
        adds[k] = Op::added(double(load(g.value[k])), slope, inside);
        if (!inside) g.value[k] = T{};
      }
      if constexpr (kOfX == 1) {
        T* of_x = terms.of_x + begin;
        write_vector(of_x, 0, count, aligned16(of_x), g);
      }
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

// Moves: reads 0, writes 2 * groups * S.
template <class S>
struct StoreTotals {
  StoreTotal<S> scale, offset;
  __device__ void operator()(int64_t group, Pair total) const {
    scale(group, total.first);
    offset(group, total.second);
  }
};

template <class T, class Terms>
void reduce_into(const Launcher& launch, const Groups& groups, const Terms& terms, double factor, const Tensor& out) {
  dispatch_floating("lsq_backward", "scale", out, [&](auto type) {
    using S = typename decltype(type)::type;
    reduce_groups<Additive, T>(launch, groups, out, terms, StoreTotal<S>{mutable_data<S>(out), factor});
  });
}

template <class T, class Terms>
void reduce_into(const Launcher& launch, const Groups& groups, const Terms& terms, const LsqBackward& call) {
  reduce_into<T>(launch, groups, terms, call.factor, call.of_scale);
}

template <class T, class Terms>
void reduce_into(const Launcher& launch, const Groups& groups, const Terms& terms, const LsqPlusBackward& call) {
  dispatch_floating("lsq_plus_backward", "scale", call.of_scale, [&](auto type) {
    using S = typename decltype(type)::type;
    const StoreTotals<S> store{
        {mutable_data<S>(call.of_scale), call.factor}, {mutable_data<S>(call.of_offset), call.factor}};
    reduce_groups<AdditivePair, T>(launch, groups, call.of_scale, terms, store);
  });
}

template <template <class> class Op, int kOfX, class T, class Call>
void launch_learned_backward(const Launcher& launch, Type<T>, const Quantizer& quantizer, const Call& call) {
  using A = arithmetic_t<T>;
  const LearnedTerms<Op<A>, kOfX, T> terms{
      quantizer.element<Op, A>(), DeviceSteps<A>(quantizer), const_data<T>(call.grad), const_data<T>(call.x),
      kOfX == 1 ? mutable_data<T>(*call.of_x) : nullptr};
  reduce_into<T>(launch, quantizer.groups_of(call.x), terms, call);
}

std::tuple<Tensor, Tensor> lsq_backward_cuda(
    Tensor grad, Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  const Launcher launch(x);
  const Quantizer quantizer = lsq_quantizer(x, scale, quant_min, quant_max, axis);
  const LsqBackward call = prepare_lsq_backward("lsq_backward", grad, x, scale, quantizer, grad_scale, of_sample);
  dispatch_elements(
      "lsq_backward", "x", x, [&](auto type) { launch_learned_backward<Learned, 1>(launch, type, quantizer, call); });
  return {*call.of_x, call.of_scale};
}

Tensor lsq_backward_of_scale_cuda(
    Tensor grad, Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  constexpr const char* op = "lsq_backward_of_scale";
  const Launcher launch(x);
  const Quantizer quantizer = lsq_quantizer(x, scale, quant_min, quant_max, axis);
  const LsqBackward call =
      prepare_lsq_backward(op, grad, x, scale, quantizer, grad_scale, of_sample, Gradients::of_parameters);
  dispatch_elements(op, "x", x, [&](auto type) { launch_learned_backward<Learned, 0>(launch, type, quantizer, call); });
  return call.of_scale;
}

std::tuple<Tensor, Tensor, Tensor> lsq_plus_backward_cuda(
    Tensor grad, Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  const Launcher launch(x);
  const Quantizer quantizer = lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis);
  constexpr const char* op = "lsq_plus_backward";
  const LsqPlusBackward call = prepare_lsq_plus_backward(op, grad, x, scale, offset, quantizer, grad_scale, of_sample);
  dispatch_elements(
      op, "x", x, [&](auto type) { launch_learned_backward<LearnedOffset, 1>(launch, type, quantizer, call); });
  return call.in_dtypes_of(scale, offset);
}

std::tuple<Tensor, Tensor> lsq_plus_backward_of_parameters_cuda(
    Tensor grad, Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  constexpr const char* op = "lsq_plus_backward_of_parameters";
  const Launcher launch(x);
  const Quantizer quantizer = lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis);
  const LsqPlusBackward call =
      prepare_lsq_plus_backward(op, grad, x, scale, offset, quantizer, grad_scale, of_sample, Gradients::of_parameters);
  dispatch_elements(
      op, "x", x, [&](auto type) { launch_learned_backward<LearnedOffset, 0>(launch, type, quantizer, call); });
  return call.of_parameters(scale, offset);
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

template <class T>
void launch_pact(
    const Launcher& launch, Type<T> type, const Parameter& alpha, int64_t steps, const PactMasks& masks,
    const Elementwise& call) {
  using A = arithmetic_t<T>;
  launch_quantize<2>(
      launch, type, PactByStep<A>(), DevicePact<A>{alpha.data<A>(), A(steps)}, whole_tensor(call.x.numel()), call,
      {mutable_bytes(masks.inside), mutable_bytes(masks.above)});
}

std::tuple<Tensor, Tensor, Tensor> pact_cuda(Tensor x, Tensor alpha, int64_t bits) {
  const Launcher launch(x);
  const int64_t steps = steps_of_bits("pact", bits);
  const Parameter parameter("pact", "alpha", alpha, 0, x, -1);
  const PactMasks masks{new_mask(x), new_mask(x)};
  const Elementwise call(x);
  dispatch_elements("pact", "x", x, [&](auto type) { launch_pact(launch, type, parameter, steps, masks, call); });
  return {call.out, masks.inside, masks.above};
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

template <class T>
void launch_pact_backward(const Launcher& launch, Type<T>, const PactMasks& masks, const PactBackward& call) {
  const int64_t numel = call.grad.numel();
  const PactTerms<T> terms{
      const_data<T>(call.grad), const_bytes(masks.inside), const_bytes(masks.above), mutable_data<T>(call.of_x), numel};
  reduce_into<T>(launch, whole_tensor(numel), terms, 1, call.of_alpha);
}

std::tuple<Tensor, Tensor> pact_backward_cuda(Tensor grad, Tensor inside, Tensor above, Tensor alpha) {
  const Launcher launch(grad);
  const PactMasks masks{inside, above};
  const PactBackward call = prepare_pact_backward(grad, masks, alpha);
  dispatch_elements("pact_backward", "grad", grad, [&](auto type) { launch_pact_backward(launch, type, masks, call); });
  return {call.of_x, call.of_alpha};
}

std::tuple<Tensor, Tensor> dorefa_activation_cuda(Tensor x, int64_t bits) {
  constexpr const char* op = "dorefa_activation";
  const Launcher launch(x);
  const int64_t steps = steps_of_bits(op, bits);
  const Tensor mask = new_mask(x);
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) {
    using A = arithmetic_t<typename decltype(type)::type>;
    launch_without_steps<1>(launch, type, UnitInterval<A>{A(steps)}, call, {mutable_bytes(mask)});
  });
  return {call.out, mask};
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_cuda));
  m.impl("lsq", TORCH_BOX(&lsq_cuda));
  m.impl("lsq_masked", TORCH_BOX(&lsq_masked_cuda));
  m.impl("lsq_backward", TORCH_BOX(&lsq_backward_cuda));
  m.impl("lsq_backward_of_scale", TORCH_BOX(&lsq_backward_of_scale_cuda));
  m.impl("lsq_plus", TORCH_BOX(&lsq_plus_cuda));
  m.impl("lsq_plus_masked", TORCH_BOX(&lsq_plus_masked_cuda));
  m.impl("lsq_plus_backward", TORCH_BOX(&lsq_plus_backward_cuda));
  m.impl("lsq_plus_backward_of_parameters", TORCH_BOX(&lsq_plus_backward_of_parameters_cuda));
  m.impl("pact", TORCH_BOX(&pact_cuda));
  m.impl("pact_backward", TORCH_BOX(&pact_backward_cuda));
  m.impl("dorefa_activation", TORCH_BOX(&dorefa_activation_cuda));
}

}  // namespace ste_ops
