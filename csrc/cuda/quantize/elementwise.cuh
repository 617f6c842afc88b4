// Element-wise kernels of the quantizers, with one step for all elements or one for each channel.
#pragma once

#include "../../quantize.h"
#include "../mask.cuh"

namespace ste_ops {

// Where a kernel finds the step of a group. An invalid scale gives a step of NaN.
// Moves: reads steps * A, writes 0; steps are the numbers that tensors hold.
template <class A>
struct DeviceSteps {
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

// No step at all.
// Moves: reads 0, writes 0.
template <class A>
struct NoSteps {
  __device__ Step<A> at(int64_t) const { return {}; }
};

// `kMasks` of the masks `inside` and `above` are written. With groups.count() == 1 the step is read once.
// Moves: reads n * T + Steps, writes n * T + kMasks * (n / 8).
template <int kMasks, class Op, class Steps, class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    quantize_kernel(Op op, Steps steps, Groups groups, const T* x, T* out, uint8_t* inside, uint8_t* above,
                    int64_t numel, bool aligned) {
  Vector<T> v[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) v[k] = read_vector(x, vector_begin<T>(k), numel, aligned);
  int64_t group = 0;
  Step<arithmetic_t<T>> step = steps.at(group);
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<T>(k);
    uint32_t inside_bits = 0, above_bits = 0;
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      if (groups.count() > 1 && begin + i < numel) {
        int64_t next = groups.of(begin + i);
        if (next != group) step = steps.at(group = next);
      }
      const auto quantized = op(load(v[k].value[i]), step);
      v[k].value[i] = store<T>(quantized.value);
      inside_bits |= uint32_t(begin + i < numel && quantized.inside) << i;
      above_bits |= uint32_t(begin + i < numel && quantized.above) << i;
    }
    write_vector(out, begin, numel, aligned, v[k]);
    if constexpr (kMasks > 0) store_mask_bits<T>(inside, begin, numel, inside_bits);
    if constexpr (kMasks > 1) store_mask_bits<T>(above, begin, numel, above_bits);
  }
}

struct MaskPointers {
  uint8_t *inside = nullptr, *above = nullptr;
};

template <int kMasks, class Op, class Steps, class T>
void launch_quantize(const Launcher& launch, const Op& op, const Steps& steps, const Groups& groups, const T* x, T* out,
                     MaskPointers masks) {
  launch(quantize_kernel<kMasks, Op, Steps, T>, elementwise_blocks<T>(groups.numel()), kElementwiseThreads, op, steps,
         groups, x, out, masks.inside, masks.above, groups.numel(), aligned16(x) && aligned16(out));
}

}  // namespace ste_ops
