// The kernel of the element-wise quantizers, with one step for all elements or one for each channel.
#pragma once

#include "cuda/mask.cuh"
#include "ops/quantize/uniform.h"

namespace ste_ops {

// Where a kernel finds the step of a group. An invalid scale gives a step of NaN.
// Moves: reads steps * A, writes 0; steps are the numbers that tensors hold.
template <class A>
struct DeviceSteps {
  static constexpr bool kShared = false;
  const A *scale, *zero_point;  // null for the number
  A scale_number, zero_point_number;
  int64_t scale_stride, zero_point_stride;

  explicit DeviceSteps(const Quantizer& quantizer)
      : scale(quantizer.scale.template data<A>()),
        zero_point(quantizer.zero_point.template data<A>()),
        scale_number(A(quantizer.scale.number)),
        zero_point_number(A(quantizer.zero_point.number)),
        scale_stride(quantizer.scale.stride()),
        zero_point_stride(quantizer.zero_point.stride()) {}

  __device__ Step<A> at(int64_t group) const {
    A s = scale == nullptr ? scale_number : scale[group * scale_stride];
    return step_of(s, zero_point == nullptr ? zero_point_number : zero_point[group * zero_point_stride]);
  }
};

// The one step of all groups.
// Moves: reads steps * A, writes 0; steps are the numbers that tensors hold.
template <class A>
struct SharedStep : DeviceSteps<A> {
  static constexpr bool kShared = true;
  using DeviceSteps<A>::DeviceSteps;
};

// No step at all.
// Moves: reads 0, writes 0.
template <class A>
struct NoSteps {
  static constexpr bool kShared = true;
  __device__ Step<A> at(int64_t) const { return {}; }
};

// `kMasks` of the masks `inside` and `above` are written. A step that all share is read once; the kernels of several
// groups, a multiple of the code, are others, so that it does not lie between the instructions of these.
// Moves: reads n * T + Steps, writes n * T + kMasks * (n / 8).
template <int kMasks, class Op, class Steps, class T>
__global__ void __launch_bounds__(kElementwiseThreads) quantize_kernel(
    Op op, Steps steps, Groups groups, const T* x, T* out, uint8_t* inside, uint8_t* above, int64_t numel,
    bool aligned) {
  constexpr int kAhead = Steps::kShared ? kChunksPerWarp : 2;
  int64_t group = -1;
  Step<arithmetic_t<T>> step;
#pragma unroll 1
  for (int first = 0; first < kChunksPerWarp; first += kAhead) {
    Vector<T> v[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) v[k] = read_vector(x, vector_begin<T>(first + k), numel, aligned);
    // Behind the loads, which do not wait for it.
    if constexpr (Steps::kShared) step = steps.at(0);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t begin = vector_begin<T>(first + k);
      uint32_t inside_bits = 0, above_bits = 0;
      GroupWalk walk;
      if constexpr (!Steps::kShared) walk = GroupWalk(groups, begin < numel ? begin : 0);
#pragma unroll
      for (int i = 0; i < Vector<T>::size; ++i) {
        if constexpr (!Steps::kShared) {
          if (walk.group != group) step = steps.at(group = walk.group);
          walk.next(groups);
        }
        const auto quantized = op(load(v[k].value[i]), step);
        v[k].value[i] = store<T>(quantized.value);
        inside_bits |= uint32_t(quantized.inside) << i;
        above_bits |= uint32_t(quantized.above) << i;
      }
      write_vector(out, begin, numel, aligned, v[k]);
      if constexpr (kMasks > 0) store_mask_bits<T>(inside, begin, numel, inside_bits);
      if constexpr (kMasks > 1) store_mask_bits<T>(above, begin, numel, above_bits);
    }
  }
}

struct MaskPointers {
  uint8_t *inside = nullptr, *above = nullptr;
};

// All elements of a call.
template <int kMasks, class Op, class Steps, class T>
void launch_quantize(
    const Launcher& launch, Type<T>, const Op& op, const Steps& steps, const Groups& groups, const Elementwise& call,
    MaskPointers masks) {
  const T* x = const_data<T>(call.x);
  T* out = mutable_data<T>(call.out);
  const int64_t numel = call.x.numel();
  launch(
      quantize_kernel<kMasks, Op, Steps, T>, elementwise_blocks<T>(numel), kElementwiseThreads, op, steps, groups, x,
      out, masks.inside, masks.above, numel, aligned16(x) && aligned16(out));
}

// Of functions that need no step.
template <int kMasks, class Op, class T>
void launch_without_steps(
    const Launcher& launch, Type<T> type, const Op& op, const Elementwise& call, MaskPointers masks) {
  launch_quantize<kMasks>(launch, type, op, NoSteps<arithmetic_t<T>>(), whole_tensor(call.x.numel()), call, masks);
}

}  // namespace ste_ops
