// Element-wise loops of the quantizers, with one step for all elements or one for each channel.
#pragma once

#include <vector>

#include "cpu/masked.h"
#include "cpu/widen.h"
#include "ops/quantize/uniform.h"

namespace ste_ops {

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
  static constexpr int64_t kStretch = 512, kLongestPeriod = 16384;

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

// An element and the mask that goes with it; i counts from `base`.
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

// An element where nothing is masked.
template <class Op, class Steps, class T>
struct Element {
  Op op;
  Steps steps;
  const T* x;
  T* out;

  STE_OPS_INLINE void operator()(int64_t i) const { out[i] = store<T>(op(load(x[i]), steps.at(i)).value); }
};

template <class Op, class Steps, class T>
void quantize_all(const Op& op, const Steps& steps, const T* x, T* out, int64_t numel) {
  parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) {
    steps.visit(begin, end, [&](const auto& lanes, int64_t from, int64_t to) {
      each(Element<Op, std::decay_t<decltype(lanes)>, T>{op, lanes, x, out}, from, to);
    });
  });
}

template <class Op, class Steps, class T>
void quantize_masked(const Op& op, const Steps& steps, const T* x, T* out, uint8_t* mask, int64_t numel) {
  using A = arithmetic_t<T>;
  parallel_aligned(numel, kWord, [&](int64_t begin, int64_t end) {
    steps.visit(begin, end, [&](const auto& lanes, int64_t from, int64_t to) {
      const MaskedElement<Op, std::decay_t<decltype(lanes)>, A> element{op, lanes, 0};
      if constexpr (sizeof(T) != 2) return masked_loop(element, x, out, mask, from, to);
      in_batches(x, out, from, to, [&](const A* wide, A* results, int64_t i, int64_t count) {
        auto moved = element;
        moved.base = i;
        masked_loop(moved, wide, results, mask + i / 8, 0, count);
      });
    });
  });
}

}  // namespace ste_ops
