// Fake quantization, LSQ, PACT and the activations of DoReFa.
#include "cpu/quantize/steps.h"
#include "cpu/reduce.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// The steps of all channels, or the one of all elements. Raises before anything is written.
template <class A>
std::vector<Step<A>> checked_steps(const char* op, const Quantizer& quantizer, int64_t count) {
  const Parameter &scale = quantizer.scale, &zero_point = quantizer.zero_point;
  std::vector<Step<A>> steps(quantizer.shared() ? 1 : count);
  for (size_t c = 0; c < steps.size(); ++c) {
    A s = scale.tensor ? scale.data<A>()[c * scale.stride()] : A(scale.number);
    A z = zero_point.tensor ? zero_point.data<A>()[c * zero_point.stride()] : A(zero_point.number);
    steps[c] = checked_step(op, s, z, quantizer.is_offset, c);
  }
  return steps;
}

// Calls f with the steps of the elements, as loops visit them.
template <class A, class F>
void with_steps(const char* op, const Quantizer& quantizer, const Groups& groups, const F& f) {
  std::vector<Step<A>> steps = checked_steps<A>(op, quantizer, groups.size);
  if (quantizer.shared()) {
    f(TensorStep<A>{steps[0]});
  } else {
    f(ChannelSteps<A>(groups, std::move(steps)));
  }
}

template <template <class> class Op, class T>
void masked_steps_loop(
    const char* op, Type<T> type, const Quantizer& quantizer, const Elementwise& call, const Tensor& mask) {
  using A = arithmetic_t<T>;
  with_steps<A>(op, quantizer, quantizer.groups_of(call.x), [&](const auto& steps) {
    quantize_masked(type, quantizer.element<Op, A>(), steps, call, mask);
  });
}

template <template <class> class Op>
std::tuple<Tensor, Tensor> masked_steps(const char* op, const Quantizer& quantizer, const Tensor& x) {
  const Tensor mask = new_mask(x);
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) { masked_steps_loop<Op>(op, type, quantizer, call, mask); });
  return {call.out, mask};
}

std::tuple<Tensor, Tensor> fake_quantize_cpu(
    Tensor x, std::optional<Tensor> scale, std::optional<Tensor> zero_point, double scale_number,
    double zero_point_number, int64_t quant_min, int64_t quant_max, int64_t axis) {
  constexpr const char* op = "fake_quantize";
  const Quantizer quantizer(op, x, scale, zero_point, scale_number, zero_point_number, quant_min, quant_max, axis);
  const bool affine = Quantizer::is_affine(zero_point, zero_point_number);
  return affine ? masked_steps<Affine>(op, quantizer, x) : masked_steps<Uniform>(op, quantizer, x);
}

template <template <class> class Op, class T>
void learned_loop(const char* op, Type<T> type, const Quantizer& quantizer, const Elementwise& call) {
  using A = arithmetic_t<T>;
  with_steps<A>(op, quantizer, quantizer.groups_of(call.x), [&](const auto& steps) {
    quantize_all(type, quantizer.element<Op, A>(), steps, call);
  });
}

template <template <class> class Op>
Tensor learned(const char* op, const Quantizer& quantizer, const Tensor& x) {
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) { learned_loop<Op>(op, type, quantizer, call); });
  return call.out;
}

Tensor lsq_cpu(Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis) {
  return learned<Learned>("lsq", lsq_quantizer(x, scale, quant_min, quant_max, axis), x);
}

std::tuple<Tensor, Tensor> lsq_masked_cpu(Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis) {
  return masked_steps<Learned>("lsq", lsq_quantizer(x, scale, quant_min, quant_max, axis), x);
}

Tensor lsq_plus_cpu(Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis) {
  return learned<LearnedOffset>("lsq_plus", lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis), x);
}

std::tuple<Tensor, Tensor> lsq_plus_masked_cpu(
    Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis) {
  return masked_steps<LearnedOffset>("lsq_plus", lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis), x);
}

// What each element adds to the gradients of its scale and its offset; that of x on the way, where it is asked for.
template <class Op, bool kOfX, class T, class Steps>
struct LearnedTerm {
  Op op;
  Steps steps;
  const T *grad, *x;
  T* of_x;

  STE_OPS_INLINE typename Op::Reduction::Total operator()(int64_t i, int64_t lane) const {
    bool inside;
    const arithmetic_t<T> slope = op.slope(load(x[i]), steps.at(lane), inside);
    if constexpr (kOfX) {
      const bits_t<T> bits = bit_cast<bits_t<T>>(grad[i]);
      of_x[i] = bit_cast<T>(bits_t<T>(inside ? bits : bits_t<T>(0)));
    }
    return Op::added(double(load(grad[i])), slope, inside);
  }
};

// The steps of the lanes of a task whose rows hold several channels.
template <class A>
StepLanes<A> lanes_of(const Groups& groups, const ReduceTask& task, const std::vector<Step<A>>& steps) {
  static thread_local StepLists<A> lists(kReduceSpan);
  for (int64_t lane = 0; lane < task.width && lane < task.length; lane += groups.inner) {
    lists.set(lane, lane + groups.inner, steps[task.first + lane / groups.inner % groups.size]);
  }
  return lists.from(0, 0);
}

// Into the dtype of `out`, one for each group.
void store_totals(const std::vector<double>& totals, double factor, const Tensor& out) {
  dispatch_floating("lsq_backward", "scale", out, [&](auto type) {
    using T = typename decltype(type)::type;
    T* numbers = mutable_data<T>(out);
    for (size_t i = 0; i < totals.size(); ++i) numbers[i] = store<T>(arithmetic_t<T>(totals[i] * factor));
  });
}

void store_gradients(const std::vector<double>& totals, const LsqBackward& call) {
  store_totals(totals, call.factor, call.of_scale);
}

void store_gradients(const std::vector<Pair>& totals, const LsqPlusBackward& call) {
  std::vector<double> each(totals.size());
  std::transform(totals.begin(), totals.end(), each.begin(), [](const Pair& total) { return total.first; });
  store_totals(each, call.factor, call.of_scale);
  std::transform(totals.begin(), totals.end(), each.begin(), [](const Pair& total) { return total.second; });
  store_totals(each, call.factor, call.of_offset);
}

template <template <class> class Op, bool kOfX, class T, class Call>
void learned_backward_loop(const char* name, Type<T>, const Quantizer& quantizer, const Call& call) {
  using A = arithmetic_t<T>;
  using Reduction = typename Op<A>::Reduction;
  const Groups groups = quantizer.groups_of(call.x);
  const T *grad = const_data<T>(call.grad), *x = const_data<T>(call.x);
  T* of_x = kOfX ? mutable_data<T>(*call.of_x) : nullptr;
  const Op<A> op = quantizer.element<Op, A>();
  const std::vector<Step<A>> steps = checked_steps<A>(name, quantizer, groups.size);
  std::vector<typename Reduction::Total> totals(groups.count());
  if (rows_hold_one_group(groups)) {
    reduce_groups<Reduction, A>(groups, totals.data(), [&](const ReduceTask& task) {
      return LearnedTerm<Op<A>, kOfX, T, SharedStep<A>>{op, {steps[task.first]}, grad, x, of_x};
    });
  } else {
    reduce_groups<Reduction, A>(groups, totals.data(), [&](const ReduceTask& task) {
      return LearnedTerm<Op<A>, kOfX, T, StepLanes<A>>{op, lanes_of(groups, task, steps), grad, x, of_x};
    });
  }
  store_gradients(totals, call);
}

std::tuple<Tensor, Tensor> lsq_backward_cpu(
    Tensor grad, Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  const Quantizer quantizer = lsq_quantizer(x, scale, quant_min, quant_max, axis);
  const LsqBackward call = prepare_lsq_backward("lsq_backward", grad, x, scale, quantizer, grad_scale, of_sample);
  dispatch_elements(
      "lsq_backward", "x", x, [&](auto type) { learned_backward_loop<Learned, true>("lsq", type, quantizer, call); });
  return {*call.of_x, call.of_scale};
}

Tensor lsq_backward_of_scale_cpu(
    Tensor grad, Tensor x, Tensor scale, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  constexpr const char* op = "lsq_backward_of_scale";
  const Quantizer quantizer = lsq_quantizer(x, scale, quant_min, quant_max, axis);
  const LsqBackward call =
      prepare_lsq_backward(op, grad, x, scale, quantizer, grad_scale, of_sample, Gradients::of_parameters);
  dispatch_elements(
      op, "x", x, [&](auto type) { learned_backward_loop<Learned, false>("lsq", type, quantizer, call); });
  return call.of_scale;
}

std::tuple<Tensor, Tensor, Tensor> lsq_plus_backward_cpu(
    Tensor grad, Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  const Quantizer quantizer = lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis);
  constexpr const char* op = "lsq_plus_backward";
  const LsqPlusBackward call = prepare_lsq_plus_backward(op, grad, x, scale, offset, quantizer, grad_scale, of_sample);
  dispatch_elements(
      op, "x", x, [&](auto type) { learned_backward_loop<LearnedOffset, true>("lsq_plus", type, quantizer, call); });
  return call.in_dtypes_of(scale, offset);
}

std::tuple<Tensor, Tensor> lsq_plus_backward_of_parameters_cpu(
    Tensor grad, Tensor x, Tensor scale, Tensor offset, int64_t quant_min, int64_t quant_max, int64_t axis,
    std::optional<double> grad_scale, bool of_sample) {
  constexpr const char* op = "lsq_plus_backward_of_parameters";
  const Quantizer quantizer = lsq_plus_quantizer(x, scale, offset, quant_min, quant_max, axis);
  const LsqPlusBackward call =
      prepare_lsq_plus_backward(op, grad, x, scale, offset, quantizer, grad_scale, of_sample, Gradients::of_parameters);
  dispatch_elements(
      op, "x", x, [&](auto type) { learned_backward_loop<LearnedOffset, false>("lsq_plus", type, quantizer, call); });
  return call.of_parameters(scale, offset);
}

// The second mask of pact; what it writes beside it is of no use.
template <class A>
struct AboveAlpha {
  A alpha;
  STE_OPS_INLINE Masked<A> operator()(A x, int64_t) const { return {0, x >= alpha}; }
};

// A batch in the arithmetic, with both masks.
template <class A>
struct PactBatch {
  Pact<A> op;
  uint8_t *inside, *above;

  void operator()(const A* x, A* out, int64_t i, int64_t count) const {
    masked_loop(MaskedElement<Pact<A>, SharedStep<A>, A>{op, {}, 0}, x, out, inside + i / 8, 0, count);
    A unused[kBatch];
    masked_loop(AboveAlpha<A>{op.alpha}, x, unused, above + i / 8, 0, count);
  }
};

template <class T>
void pact_loop(Type<T>, const Parameter& parameter, int64_t steps, const PactMasks& masks, const Elementwise& call) {
  using A = arithmetic_t<T>;
  const A alpha = *parameter.data<A>();
  STE_CHECK(
      Pact<A>::is_alpha(alpha, A(steps)), "pact: alpha must be positive and finite, and ", steps, " / alpha too, got ",
      alpha);
  const PactBatch<A> batch{Pact<A>::of(alpha, A(steps)), mutable_bytes(masks.inside), mutable_bytes(masks.above)};
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  parallel_aligned(call.x.numel(), kWord, [&](int64_t begin, int64_t end) { in_batches(x, out, begin, end, batch); });
}

std::tuple<Tensor, Tensor, Tensor> pact_cpu(Tensor x, Tensor alpha, int64_t bits) {
  const int64_t steps = steps_of_bits("pact", bits);
  const Parameter parameter("pact", "alpha", alpha, 0, x, -1);
  const PactMasks masks{new_mask(x), new_mask(x)};
  const Elementwise call(x);
  dispatch_elements("pact", "x", x, [&](auto type) { pact_loop(type, parameter, steps, masks, call); });
  return {call.out, masks.inside, masks.above};
}

template <class T>
struct PactTerm {
  const T* grad;
  const uint8_t *inside, *above;
  T* of_x;
};

template <class T>
STE_OPS_CLONES void add_where(const T* grad, const uint8_t* mask, int64_t count, double* totals) {
  using U = bits_t<T>;
  for (int64_t i = 0; i < count; i += kWord) {
    uint8_t passes[kWord];
    for (int64_t j = 0; j < kWord / 8; ++j) unpack8(mask[i / 8 + j], passes + 8 * j);
    for (int64_t k = 0; k < kWord; ++k) {
      totals[i + k] += double(load(bit_cast<T>(U(bit_cast<U>(grad[i + k]) & U(-U(passes[k]))))));
    }
  }
}

// There is one group, so a row begins with a byte of the masks. Most words of `above` are empty in a net that trains.
template <class Reduction, class T>
void reduce_row(const PactTerm<T>& term, int64_t begin, int64_t count, double* totals) {
  using U = bits_t<T>;
  const T* grad = term.grad + begin;
  const uint8_t* above = term.above + begin / 8;
  where_loop(
      reinterpret_cast<const U*>(grad), term.inside + begin / 8, reinterpret_cast<U*>(term.of_x + begin), 0, count);
  const int64_t whole = count - count % kWord;
  for (int64_t i = 0; i < whole; i += kWord) {
    uint64_t word;
    memcpy(&word, above + i / 8, sizeof(word));
    if (word != 0) add_where(grad + i, above + i / 8, kWord, totals + i);
  }
  for (int64_t i = whole; i < count; ++i) totals[i] += mask_bit(above, i) ? double(load(grad[i])) : 0.0;
}

template <class T>
void pact_backward_loop(Type<T>, const PactMasks& masks, const PactBackward& call) {
  const PactTerm<T> term{
      const_data<T>(call.grad), const_bytes(masks.inside), const_bytes(masks.above), mutable_data<T>(call.of_x)};
  std::vector<double> total(1);
  reduce_groups<Additive, arithmetic_t<T>>(
      whole_tensor(call.grad.numel()), total.data(), [&](const ReduceTask&) { return term; });
  store_totals(total, 1, call.of_alpha);
}

std::tuple<Tensor, Tensor> pact_backward_cpu(Tensor grad, Tensor inside, Tensor above, Tensor alpha) {
  const PactMasks masks{inside, above};
  const PactBackward call = prepare_pact_backward(grad, masks, alpha);
  dispatch_elements("pact_backward", "grad", grad, [&](auto type) { pact_backward_loop(type, masks, call); });
  return {call.of_x, call.of_alpha};
}

std::tuple<Tensor, Tensor> dorefa_activation_cpu(Tensor x, int64_t bits) {
  constexpr const char* op = "dorefa_activation";
  const int64_t steps = steps_of_bits(op, bits);
  const Tensor mask = new_mask(x);
  const Elementwise call(x);
  dispatch_elements(op, "x", x, [&](auto type) {
    using A = arithmetic_t<typename decltype(type)::type>;
    quantize_masked(type, UnitInterval<A>{A(steps)}, TensorStep<A>{}, call, mask);
  });
  return {call.out, mask};
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_cpu));
  m.impl("lsq", TORCH_BOX(&lsq_cpu));
  m.impl("lsq_masked", TORCH_BOX(&lsq_masked_cpu));
  m.impl("lsq_backward", TORCH_BOX(&lsq_backward_cpu));
  m.impl("lsq_backward_of_scale", TORCH_BOX(&lsq_backward_of_scale_cpu));
  m.impl("lsq_plus", TORCH_BOX(&lsq_plus_cpu));
  m.impl("lsq_plus_masked", TORCH_BOX(&lsq_plus_masked_cpu));
  m.impl("lsq_plus_backward", TORCH_BOX(&lsq_plus_backward_cpu));
  m.impl("lsq_plus_backward_of_parameters", TORCH_BOX(&lsq_plus_backward_of_parameters_cpu));
  m.impl("pact", TORCH_BOX(&pact_cpu));
  m.impl("pact_backward", TORCH_BOX(&pact_backward_cpu));
  m.impl("dorefa_activation", TORCH_BOX(&dorefa_activation_cpu));
}

}  // namespace ste_ops
