// Every schema, and the module initialisation that makes _C importable.
#include "cpu/python.h"
#include "ops/library.h"

#include <torch/headeronly/version.h>

#include <sstream>
#include <string>

#include "core/binarize/surrogate.h"
#include "cpu/capability.h"
#include "cpu/clip/python_list.h"
#include "cpu/sampling/python_draws.h"

namespace {

const char* name_of(ste_ops::Saves saves) {
  switch (saves) {
    case ste_ops::Saves::nothing: return "nothing";
    case ste_ops::Saves::mask: return "mask";
    default: return "input";
  }
}

template <class S>
std::string described() {
  return std::string(S::name) + ":" + name_of(S::saves);
}

template <class... S>
std::string described(std::tuple<S...>*) {
  std::string all;
  ((all += (all.empty() ? "" : " ") + described<S>()), ...);
  return all;
}

// "Identity:nothing Clip:mask ...", the list of csrc/core/binarize/surrogate.h in order: a surrogate's number is its
// position, and behind its name stands what its backward needs of the forward.
std::string surrogates() { return described(static_cast<ste_ops::Surrogates*>(nullptr)); }

// "key=value" lines: what this library was compiled with.
std::string build_info() {
  std::ostringstream info;
  info << "torch=" << TORCH_VERSION_MAJOR << '.' << TORCH_VERSION_MINOR << '.' << TORCH_VERSION_PATCH << '\n';
  info << "abi_target=" << (TORCH_TARGET_VERSION >> 56) << '.' << (TORCH_TARGET_VERSION >> 48 & 0xff) << '\n';
  info << "compiler=" << __VERSION__ << '\n';
  const ste_ops::ChosenCapability& chosen = ste_ops::checked_capability("build_info");
  info << "cpu_capability=" << ste_ops::name_of(chosen.level) << (chosen.popcounts ? " vpopcntdq" : "");
  return info.str();
}

}  // namespace

STE_OPS_LIBRARY(m) {
  // Straight-through steps. `surrogate` is a number of surrogates(), `a` and `b` its parameters in the order of its
  // dataclass. `mask` has one bit an element in the memory order of `out`, or no element where the surrogate saves
  // none.
  m.def("heaviside(Tensor x, int surrogate, float a, float b) -> (Tensor out, Tensor mask)");
  m.def("heaviside_from_zero(Tensor x, int surrogate, float a, float b) -> (Tensor out, Tensor mask)");
  m.def("sign(Tensor x, int surrogate, float a, float b) -> (Tensor out, Tensor mask)");
  m.def("ternary(Tensor x, int surrogate, float a, float b, float threshold) -> (Tensor out, Tensor mask)");
  // One of these by its name, with its numbers in float64 on x's device: a, b and the threshold of ternary.
  m.def("binarize_held(Tensor x, str step, int surrogate, Tensor parameters) -> (Tensor out, Tensor mask)");
  // factor * grad where the mask has a one and 0 elsewhere; `mask` in grad's row-major order, the result row-major.
  m.def("binarize_backward(Tensor grad, Tensor mask, float factor=1.0) -> Tensor");
  m.def("binarize_backward_held(Tensor grad, Tensor mask, Tensor factor) -> Tensor");
  // grad s'(x) and upper grad s''(x) of a surrogate that saves x, exactly 0 where that derivative is 0; in x's dtype
  // and layout. `parameters`, two float64 numbers on x's device, stand in for a and b where they are given.
  m.def("curve_backward(Tensor grad, Tensor x, int surrogate, float a, float b, Tensor? parameters) -> Tensor");
  m.def(
      "curve_second(Tensor upper, Tensor grad, Tensor x, int surrogate, float a, float b, Tensor? parameters) -> "
      "Tensor");
  // The gradient of x, in x's dtype and layout, and those of two parameters, in float64: the sums of grad times the
  // derivative of the surrogate's primitive. `parameters` as above, of any surrogate that has some.
  m.def(
      "learned_surrogate_backward(Tensor grad, Tensor x, int surrogate, Tensor parameters) -> "
      "(Tensor of_x, Tensor of_parameters)");

  // Bits of signs (csrc/core/binarize/bits.h): 1 where x >= 0, eight along a dimension of a contiguous x to a byte, the
  // first the lowest; back, +1 or -1.
  m.def("pack_bits(Tensor x, int dim) -> Tensor");
  m.def("unpack_bits(Tensor bits, int dim, Tensor(a!) out) -> ()");
  // Weights as panels, for products that use them again: (out, channels, ...) of numbers or of bits along dimension 1.
  m.def("binary_panels(Tensor weight, int channels, int groups) -> Tensor");
  // Products of the signs of x and of weight, numbers or bits, or for weight its panels; times scale, plus bias, which
  // are in the arithmetic of `dtype`, the output's. With `step` the numbers of x are 1 where they are > 0 and 0
  // elsewhere. `padding` has what is added before and after height and width: of padding_value, 0 being a true zero.
  m.def(
      "binary_linear(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int in_features, int out_features, "
      "bool step, ScalarType dtype) -> Tensor");
  m.def(
      "binary_conv2d(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int in_channels, int out_channels, "
      "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, int padding_value, bool step, "
      "bool channels_last, ScalarType dtype) -> Tensor");

  // Rounding. The results have x's dtype and strides; one seed, or one for each row of a contiguous x.
  m.def("round(Tensor x) -> Tensor");
  m.def("floor(Tensor x) -> Tensor");
  m.def("ceil(Tensor x) -> Tensor");
  m.def("trunc(Tensor x) -> Tensor");
  m.def("clamp(Tensor x, float? min, float? max) -> Tensor");
  m.def("stochastic_round(Tensor x, Tensor seed) -> Tensor");

  // Uniform quantizers. An axis of -1 is the whole tensor. A scale or zero point is a tensor of one element or one for
  // each coordinate along the axis, or the number. Masks are as above, of x's memory.
  m.def(
      "fake_quantize(Tensor x, Tensor? scale, Tensor? zero_point, float scale_number, float zero_point_number, "
      "int quant_min, int quant_max, int axis) -> (Tensor out, Tensor mask)");
  // What quantizers compute with, one beside the other for compiled code: scale, its reciprocal and the offset of each
  // channel, as rows in float32 or, if `wide`, float64. An invalid one is an error on the CPU, which names `op`, and
  // NaN on CUDA.
  m.def("checked_steps(Tensor scale, Tensor? offset, bool wide, str op) -> Tensor");
  m.def("lsq(Tensor x, Tensor scale, int quant_min, int quant_max, int axis) -> Tensor");
  // The same of a scale that gets no gradient.
  m.def("lsq_masked(Tensor x, Tensor scale, int quant_min, int quant_max, int axis) -> (Tensor out, Tensor mask)");
  // The gradient of x, in its strides, and that of scale, times grad_scale; which is by default 1 / sqrt(N *
  // quant_max), N being the elements that share a scale, of all of x or of one sample of it along dimension 0.
  m.def(
      "lsq_backward(Tensor grad, Tensor x, Tensor scale, int quant_min, int quant_max, int axis, float? grad_scale, "
      "bool of_sample=False) -> (Tensor of_x, Tensor of_scale)");
  // The second of the two alone, in any layout of x and grad: compiled code makes the first by itself.
  m.def(
      "lsq_backward_of_scale(Tensor grad, Tensor x, Tensor scale, int quant_min, int quant_max, int axis, "
      "float? grad_scale, bool of_sample=False) -> Tensor");
  // lsq of x - offset, plus offset, which gets the gradient that does not pass to x, times grad_scale. scale and offset
  // have one element or one for each channel; for the backward as many.
  m.def("lsq_plus(Tensor x, Tensor scale, Tensor offset, int quant_min, int quant_max, int axis) -> Tensor");
  m.def(
      "lsq_plus_masked(Tensor x, Tensor scale, Tensor offset, int quant_min, int quant_max, int axis) "
      "-> (Tensor out, Tensor mask)");
  m.def(
      "lsq_plus_backward(Tensor grad, Tensor x, Tensor scale, Tensor offset, int quant_min, int quant_max, int axis, "
      "float? grad_scale, bool of_sample=False) -> (Tensor of_x, Tensor of_scale, Tensor of_offset)");
  m.def(
      "lsq_plus_backward_of_parameters(Tensor grad, Tensor x, Tensor scale, Tensor offset, int quant_min, "
      "int quant_max, int axis, float? grad_scale, bool of_sample=False) -> (Tensor of_scale, Tensor of_offset)");
  m.def("pact(Tensor x, Tensor alpha, int bits) -> (Tensor out, Tensor inside, Tensor above)");
  // As binarize_backward, and the sum of grad where `above` has a one, in alpha's shape and dtype.
  m.def("pact_backward(Tensor grad, Tensor inside, Tensor above, Tensor alpha) -> (Tensor of_x, Tensor of_alpha)");
  m.def("dorefa_activation(Tensor x, int bits) -> (Tensor out, Tensor mask)");

  // Codes of 1, 2, 4 or 8 bits, which of the ascending `values`, times the scale of its group, each element of a
  // contiguous q is. Groups are of `inner` elements and repeat after as many as there are scales; without a scale it
  // is 1. Behind the codes a byte for each run of 512 bytes of q says whether an element of it is none of the values;
  // unpack_codes makes such a run NaN. On the CPU there are no codes then: the result is empty.
  m.def("pack_codes(Tensor q, Tensor values, Tensor? scale, int inner, int bits) -> Tensor");
  m.def("unpack_codes(Tensor codes, Tensor values, Tensor? scale, int inner, int bits, Tensor(a!) out) -> ()");

  // Quantizers whose scale is a statistic of the tensor itself. Weights have one for each index of dimension 0 or one
  // of all. The statistic is float32, float64 for float64; the results have w's layout. sign(w) times the mean of |w|,
  // which is the statistic; magnitude_aware_sign and dorefa_weight of one bit, too.
  m.def("xnor_weight(Tensor w, bool per_channel) -> (Tensor out, Tensor mean)");
  // That statistic alone.
  m.def("mean_magnitude(Tensor w, bool per_channel) -> Tensor");
  m.def("xnor_weight_backward(Tensor grad, Tensor w, Tensor mean, bool per_channel) -> Tensor");
  m.def("magnitude_aware_sign_backward(Tensor grad, Tensor w, Tensor mean, bool per_channel) -> Tensor");
  // The same where the sign has a gradient of its own: what it gets, and what w gets through the mean, which is empty
  // where that is held.
  m.def(
      "scaled_sign_backward(Tensor grad, Tensor w, Tensor mean, bool per_channel, bool held) -> (Tensor of_sign, "
      "Tensor of_w)");
  // From two bits on; of each scale the largest |w|, then of each how many weights have its tanh.
  m.def("dorefa_weight(Tensor w, int bits, bool per_channel) -> (Tensor out, Tensor statistic)");
  m.def("dorefa_weight_backward(Tensor grad, Tensor w, Tensor statistic, bool per_channel) -> Tensor");
  m.def("bitnet_weight(Tensor w, bool per_channel) -> Tensor");
  // A scale for each line along the last dimension.
  m.def("bitnet_activation(Tensor x, int bits) -> Tensor");

  // N:M sparsity along dim 1, dim 0 of a vector: the n largest of every m neighbours, 0 elsewhere.
  m.def("sr_ste(Tensor w, int n, int m) -> Tensor");
  // grad, plus decay * w where w was set to 0; in w's layout.
  m.def("sr_ste_backward(Tensor grad, Tensor w, int n, int m, float decay) -> Tensor");

  // Clipping. A tensor list is of one device and of any floating dtypes; a tensor that is in it twice counts once. The
  // norm is 0-d, float32 unless a tensor is float64; `norms` has one for each tensor of the list where `each` is true,
  // and no element where it is not.
  m.def("total_norm(Tensor[] tensors, float norm_type, bool each=False) -> (Tensor total_norm, Tensor norms)");
  // Multiplies by max_norm / (total_norm + 1e-6) where that is below 1, and writes nothing where it is not. A norm that
  // is NaN or infinite is multiplied in (nonfinite = 0), writes nothing (1) or makes every tensor zero (2).
  m.def("clip_grads_with_norm_(Tensor(a!)[] grads, Tensor total_norm, float max_norm, int nonfinite=0) -> ()");
  // The two above in one call, which reads the list once.
  m.def(
      "clip_grad_norm_(Tensor(a!)[] grads, float max_norm, float norm_type, int nonfinite=0, bool each=False) -> "
      "(Tensor total_norm, Tensor norms)");
  m.def("clip_grad_value_(Tensor(a!)[] grads, float clip_value) -> ()");
  // Adaptive clipping of units (csrc/ops/clip/units.h): each gradient beside its parameter, of the same shape.
  m.def("clip_grad_agc_(Tensor[] parameters, Tensor(a!)[] grads, float clip_factor, float eps) -> ()");
  // Adds to each of `sums` the samples of a contiguous [batch, ...], each multiplied by min(1, max_norm / (norm +
  // 1e-6)) of its norm over all tensors. Returns these norms.
  m.def("clip_per_sample_(Tensor[] grad_samples, Tensor(a!)[] sums, float max_norm) -> Tensor");
  // The gradients of the in-graph clips. A row is the last row_dims dimensions of grad, and each row has its own norm.
  m.def("clip_gradient_value_backward(Tensor grad, float clip_value) -> Tensor");
  m.def("clip_gradient_norm_backward(Tensor grad, int row_dims, float max_norm, float norm_type) -> Tensor");

  // Weighted sampling. `table` has an int64 entry for each weight, `capacity` one number for each row: the capacity of
  // its columns (csrc/core/sampling/alias.h), 0 where every weight is zero, -1 - i where weight i is the first that is
  // negative, NaN or infinite. Draws start, start + stride, ... of every row; -1 where the row's capacity is not
  // positive.
  m.def("alias_table(Tensor weights) -> (Tensor table, Tensor capacity)");
  m.def("alias_sample(Tensor table, Tensor capacity, Tensor seed, int start, int num_samples, int stride=1) -> Tensor");
  // Draws 0, 1, ... of every row without a table, -1 where there is nothing to draw. `total` is the sum of the row's
  // masses (csrc/core/sampling/mass.h), or as capacity 0 or -1 - i.
  m.def("inverse_cdf_sample(Tensor weights, Tensor seed, int num_samples) -> (Tensor draws, Tensor total)");
  // num_samples draws of each row with replacement, of the two above the one that `few_draws` says
  // (csrc/core/sampling/inverse_cdf.h). Invalid weights are said as refuse_states does, by multinomial.
  m.def("multinomial_with_replacement(Tensor weights, Tensor seed, int num_samples) -> Tensor");
  // num_samples draws of each row without replacement, in the order in which one after the other would take them: the
  // least keys of csrc/core/sampling/exponential.h, equal ones by index. On the CPU an error where the weights are
  // invalid or too few positive, which names `op`; on CUDA -1 for every draw of an invalid row and every draw that no
  // category is left for, and a report.
  m.def("multinomial_without_replacement(Tensor weights, Tensor seed, int num_samples, str op) -> Tensor");
  // Sums over weights that change (csrc/core/sampling/sum_tree.h). `held` is a copy of the weights; `verdict` is 1, or
  // -1 - i where weight i is the first that is invalid. An update with a bad entry writes nothing; of equal indices the
  // last one counts. Draws start, start + 1, ... from a tree over n weights; -1 where all are zero and that is found
  // late.
  m.def("sum_tree(Tensor weights) -> (Tensor held, Tensor nodes, Tensor verdict)");
  m.def("sum_tree_update_(Tensor(a!) weights, Tensor(b!) nodes, Tensor indices, Tensor values) -> ()");
  m.def("sum_tree_sample(Tensor nodes, int n, Tensor seed, int start, int num_samples) -> Tensor");
  // The ancestors of num_samples particles a row (csrc/core/sampling/resample.h), -1 where there are none and that is
  // found late.
  m.def("systematic_resample(Tensor weights, Tensor seed, int num_samples) -> Tensor");
  m.def("stratified_resample(Tensor weights, Tensor seed, int num_samples) -> Tensor");
  m.def("residual_resample(Tensor weights, Tensor seed, int num_samples) -> Tensor");
  // Returns a row's states (as `capacity` above) and says what a state of 0 or below tells: on the CPU by
  // an error that names `op`; on CUDA, where the host does not wait, by a report that a later operator on the device
  // raises (csrc/cuda/sampling/row_states.cuh), as does raise_deferred.
  m.def("refuse_states(Tensor weights, Tensor states, str op) -> Tensor");
  m.def("raise_deferred(Tensor on) -> ()");
  // 1 with probability p, in p's dtype and strides. One seed, or one for each row of a contiguous p.
  m.def("bernoulli(Tensor p, Tensor seed) -> Tensor");
  // Draws from softmax(logits) over the last dimension, as one-hot vectors in logits' dtype and layout, and each row's
  // category; -1 and a row of NaN where a row is NaN, +inf or all -inf somewhere (an error on the CPU). The gradients
  // of csrc/core/sampling/categorical.h; `index` is read by all but the first estimator. One seed, or one for each of
  // dimension 0 of contiguous logits.
  m.def("categorical(Tensor logits, Tensor seed) -> (Tensor out, Tensor index)");
  m.def(
      "categorical_backward(Tensor grad, Tensor logits, Tensor seed, Tensor index, int estimator, float tau) -> "
      "Tensor");
  // The Gumbel noise of these draws, row-major, float32 or float64.
  m.def("gumbel_noise(Tensor logits, Tensor seed) -> Tensor");
  // The k largest of logits plus that noise, as k-hot vectors; their relaxed gradient (csrc/core/sampling/subset.h).
  m.def("subset(Tensor logits, Tensor seed, int k) -> Tensor");
  m.def("subset_backward(Tensor grad, Tensor logits, Tensor seed, int k, float tau) -> Tensor");

  // What stands in exported and traced programs for the autograd.Functions of ste_ops/_functions, which run them again:
  // the arguments of the Function, and its result without what it returns for the backward. A number that may be held
  // by a tensor is the one or the other.
  m.def("autograd_heaviside(Tensor x, int surrogate, float a, float b, float factor, Tensor? parameters) -> Tensor");
  m.def(
      "autograd_heaviside_from_zero(Tensor x, int surrogate, float a, float b, float factor, Tensor? parameters) "
      "-> Tensor");
  m.def("autograd_sign(Tensor x, int surrogate, float a, float b, float factor, Tensor? parameters) -> Tensor");
  m.def(
      "autograd_ternary(Tensor x, int surrogate, float a, float b, float factor, Tensor? parameters, float threshold) "
      "-> Tensor");
  m.def(
      "autograd_learned_step(Tensor x, Tensor parameters, int surrogate, str step, int identity, float? threshold, "
      "Tensor? threshold_tensor) -> Tensor");
  m.def("autograd_sloped_step(Tensor x, Tensor slope, str step, float? threshold, Tensor? threshold_tensor) -> Tensor");
  m.def("autograd_round(Tensor x) -> Tensor");
  m.def("autograd_floor(Tensor x) -> Tensor");
  m.def("autograd_ceil(Tensor x) -> Tensor");
  m.def("autograd_trunc(Tensor x) -> Tensor");
  m.def("autograd_clamp(Tensor x, float? min, float? max) -> Tensor");
  m.def("autograd_stochastic_round(Tensor x, Tensor seed) -> Tensor");
  m.def(
      "autograd_fake_quantize(Tensor x, Tensor? scale, Tensor? zero_point, float scale_number, "
      "float zero_point_number, int quant_min, int quant_max, int axis) -> Tensor");
  m.def(
      "autograd_lsq(Tensor x, Tensor scale, int quant_min, int quant_max, int axis, float? grad_scale, "
      "bool of_sample) -> Tensor");
  m.def(
      "autograd_lsq_plus(Tensor x, Tensor scale, Tensor offset, int quant_min, int quant_max, int axis, "
      "float? grad_scale, bool of_sample) -> Tensor");
  m.def("autograd_pact(Tensor x, Tensor alpha, int bits) -> Tensor");
  m.def("autograd_dorefa_activation(Tensor x, int bits) -> Tensor");
  m.def("autograd_xnor_weight(Tensor w, bool per_channel) -> Tensor");
  m.def("autograd_magnitude_aware_sign(Tensor w, bool per_channel) -> Tensor");
  m.def("autograd_scaled_sign(Tensor sign, Tensor w, bool per_channel, bool held) -> Tensor");
  m.def("autograd_dorefa_weight(Tensor w, int bits, bool per_channel) -> Tensor");
  m.def("autograd_dorefa_sign(Tensor w, bool per_channel) -> Tensor");
  m.def("autograd_bitnet_weight(Tensor w, bool per_channel) -> Tensor");
  m.def("autograd_bitnet_activation(Tensor x, int bits) -> Tensor");
  m.def("autograd_sr_ste(Tensor w, int n, int m, float decay) -> Tensor");
  m.def("autograd_bernoulli(Tensor p, Tensor seed) -> Tensor");
  m.def("autograd_categorical(Tensor logits, Tensor seed, int estimator, float tau) -> Tensor");
  m.def("autograd_subset(Tensor logits, Tensor seed, int k, float tau) -> Tensor");
  m.def(
      "autograd_binary_linear(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int in_features, "
      "int out_features, bool step, ScalarType dtype) -> Tensor");
  m.def(
      "autograd_binary_conv2d(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int in_channels, "
      "int out_channels, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, int padding_value, "
      "bool step, bool channels_last, ScalarType dtype) -> Tensor");
  m.def("autograd_clip_gradient_value(Tensor(a) x, float clip_value) -> Tensor(a)");
  m.def("autograd_clip_gradient_norm(Tensor(a) x, float max_norm, float norm_type, int[] dims) -> Tensor(a)");

  m.def("surrogates() -> str");
  m.def("build_info() -> str");
  m.def("cuda_build_info() -> str");
}

STE_OPS_ANY_DEVICE_IMPL(m) {
  m.impl("surrogates", TORCH_BOX(&surrogates));
  m.impl("build_info", TORCH_BOX(&build_info));
}

#ifndef STE_OPS_EMULATED
// Python loads this library with torch.ops.load_library; an importable module is what wheel tools expect of it.
PyMODINIT_FUNC PyInit__C(void) {
  static PyMethodDef methods[] = {
      {"clip_grad_norm_list", ste_ops::clip_grad_norm_list, METH_VARARGS, nullptr},
      {"draw_with_replacement", ste_ops::draw_with_replacement, METH_VARARGS, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
#endif
