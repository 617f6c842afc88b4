// The loops of the element-wise quantizers, with one step for all elements or one for each channel.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/masked.h"
#include "cpu/widen.h"
#include "ops/quantize/uniform.h"

namespace ste_ops {

// Raises where the scale of channel c, or an offset of it, is not valid.
template <class A>
Step<A> checked_step(const char* op, A scale, A zero_point, bool is_offset, int64_t c) {
  STE_CHECK(
      is_scale(scale), op, ": scale must be positive and finite, and its reciprocal too, got ", scale, " at index ", c);
  STE_CHECK(!is_offset || is_finite(zero_point), op, ": offset must be finite, got ", zero_point, " at index ", c);
  return step_of(scale, zero_point);
}

// The step of every element.
template <class A>
struct SharedStep {
  Step<A> step;
  STE_OPS_INLINE Step<A> at(int64_t) const { return step; }
};

// A step for each element from `base` on.
template <class A>
struct StepLanes {
  const A *scale, *inverse, *zero_point;
  int64_t base;
  STE_OPS_INLINE Step<A> at(int64_t i) const { return {scale[i - base], inverse[i - base], zero_point[i - base]}; }
};

// What loops and rows of lanes read their steps from.
template <class A>
struct StepLists {
  std::vector<A> scale, inverse, zero_point;

  explicit StepLists(int64_t count) : scale(count), inverse(count), zero_point(count) {}
  void set(int64_t begin, int64_t end, const Step<A>& step) {
    std::fill(scale.begin() + begin, scale.begin() + end, step.scale);
    std::fill(inverse.begin() + begin, inverse.begin() + end, step.inverse);
    std::fill(zero_point.begin() + begin, zero_point.begin() + end, step.zero_point);
  }
  StepLanes<A> from(int64_t place, int64_t base) const {
    return {scale.data() + place, inverse.data() + place, zero_point.data() + place, base};
  }
};

// The steps of a tensor's channels.
template <class A>
class ChannelSteps {
 public:
  ChannelSteps(const Groups& groups, std::vector<Step<A>> steps)
      : groups_(groups), steps_(std::move(steps)), period_(groups.size * groups.inner), repeated_(0) {
    // Where channels are narrow, and few, one period of the memory and a stretch more serve every stretch.
    if (groups.inner >= kStretch || period_ > kLongestPeriod) return;
    repeated_ = StepLists<A>(period_ + kStretch);
    fill(repeated_, 0, period_ + kStretch);
  }

  // Calls f(steps, from, to) for stretches of [begin, end) in turn.
  template <class F>
  void visit(int64_t begin, int64_t end, const F& f) const {
    StepLists<A> lists(repeated_.scale.empty() ? kStretch : 0);
    while (begin < end) {
      const int64_t place = begin / groups_.inner, left = (place + 1) * groups_.inner - begin;
      int64_t to = end - begin < kStretch ? end : begin + kStretch;
      if (left < to - begin && left >= kShortest && left % F::kAlign == 0) to = begin + left;
      if (left >= to - begin) {
        const int64_t whole = left - left % kStretch;
        if (whole > to - begin) to = end - begin < whole ? end : begin + whole;
        f(SharedStep<A>{steps_[place % groups_.size]}, begin, to);
      } else if (!repeated_.scale.empty()) {
        f(repeated_.from(begin % period_, begin), begin, to);
      } else {
        fill(lists, begin, to - begin);
        f(lists.from(0, begin), begin, to);
      }
      begin = to;
    }
  }

 private:
  // A step for all of a run of kShortest takes less than one for each element.
  static constexpr int64_t kStretch = 512, kLongestPeriod = 16384, kShortest = 128;

  void fill(StepLists<A>& lists, int64_t begin, int64_t count) const {
    int64_t channel = begin / groups_.inner % groups_.size, left = groups_.inner - begin % groups_.inner;
    for (int64_t i = 0; i < count; i += left, left = groups_.inner) {
      lists.set(i, i + left < count ? i + left : count, steps_[channel]);
      channel = channel + 1 < groups_.size ? channel + 1 : 0;
    }
  }

  Groups groups_;
  std::vector<Step<A>> steps_;
  int64_t period_;
  StepLists<A> repeated_;
};

// One step for all: the same face.
template <class A>
struct TensorStep {
  Step<A> step;
  template <class F>
  void visit(int64_t begin, int64_t end, const F& f) const {
    f(SharedStep<A>{step}, begin, end);
  }
};

// What becomes of an element where nothing is masked.
template <class Op, class Steps, class T>
struct Element {
  Op op;
  Steps steps;
  const T* x;
  T* out;

  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = store<T>(op(load(x[i]), steps.at(i)).value); }
};

// What becomes of an element, and its mask; i counts from `base`.
template <class Op, class Steps, class T>
struct MaskedElement {
  Op op;
  Steps steps;
  int64_t base;

  STE_OPS_INLINE Masked<T> operator()(T x, int64_t i) const {
    const auto quantized = op(load(x), steps.at(base + i));
    return {bit_cast<bits_t<T>>(store<T>(quantized.value)), quantized.inside};
  }
};

// A batch in the arithmetic.
template <class Op, class Steps, class A>
struct MaskedBatch {
  Op op;
  Steps steps;
  uint8_t* mask;

  void operator()(const A* x, A* out, int64_t i, int64_t count) const {
    masked_loop(MaskedElement<Op, Steps, A>{op, steps, i}, x, out, mask + i / 8, 0, count);
  }
};

// A stretch of elements between two changes of the way in which their steps are found.
template <class Op, class T>
struct QuantizeStretch {
  static constexpr int64_t kAlign = 1;  // of what a stretch may be long, but for the last
  Op op;
  const T* x;
  T* out;

  template <class Steps>
  void operator()(const Steps& steps, int64_t begin, int64_t end) const {
    each(Element<Op, Steps, T>{op, steps, x, out}, begin, end);
  }
};

template <class Op, class T>
struct QuantizeMaskedStretch {
  static constexpr int64_t kAlign = kWord;
  Op op;
  const T* x;
  T* out;
  uint8_t* mask;

  template <class Steps>
  void operator()(const Steps& steps, int64_t begin, int64_t end) const {
    using A = arithmetic_t<T>;
    if constexpr (sizeof(T) == 2) {
      in_batches(x, out, begin, end, MaskedBatch<Op, Steps, A>{op, steps, mask});
    } else {
      masked_loop(MaskedElement<Op, Steps, A>{op, steps, 0}, x, out, mask, begin, end);
    }
  }
};

template <class Steps, class Stretch>
void each_stretch(const Steps& steps, int64_t numel, const Stretch& stretch) {
  parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) { steps.visit(begin, end, stretch); });
}

// All elements of a call, with and without a mask.
template <class Op, class Steps, class T>
void quantize_all(Type<T>, const Op& op, const Steps& steps, const Elementwise& call) {
  const QuantizeStretch<Op, T> stretch{op, const_data<T>(call.x), mutable_data<T>(call.out)};
  each_stretch(steps, call.x.numel(), stretch);
}

template <class Op, class Steps, class T>
void quantize_masked(Type<T>, const Op& op, const Steps& steps, const Elementwise& call, const Tensor& mask) {
  const QuantizeMaskedStretch<Op, T> stretch{op, const_data<T>(call.x), mutable_data<T>(call.out), mutable_bytes(mask)};
  each_stretch(steps, call.x.numel(), stretch);
}

}  // namespace ste_ops
