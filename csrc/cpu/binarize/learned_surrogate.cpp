// The backward of a surrogate whose parameters are learned: the gradient of x and the sums beside it in one pass.
#include "ops/binarize/learned_surrogate.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/reduce.h"
#include "cpu/share.h"
#include "cpu/widen.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// A task is so many tiles that its sums are few beside its elements; the shape alone says which elements are in it.
constexpr int64_t kLearnedTile = 1024, kTask = kPart;
constexpr double kLearnedNanoseconds = 3;  // an element

// grad times a slope, 0 where the slope is.
template <class A>
STE_OPS_INLINE A closed(A grad, A slope) {
  using U = bits_t<A>;
  U open = slope == A(0) ? U(0) : ~U(0);
  return bit_cast<A>(U(bit_cast<U>(grad * slope) & open));
}

// The gradient of an element of a tile, and what it adds to the sums of its lane.
template <class S, class A>
struct LearnedTerm {
  S surrogate;
  const A *grad, *x;
  A* of_x;
  double *of_a, *of_b;

  STE_OPS_INLINE void operator()(int64_t i) const {
    of_x[i] = closed(grad[i], surrogate.derivative(x[i]));
    const ByParameters<A> by = surrogate.by_parameters(x[i]);
    of_a[i] += closed(double(grad[i]), double(by.a));
    if constexpr (S::parameters > 1) of_b[i] += closed(double(grad[i]), double(by.b));
  }
};

template <class S, class T>
struct LearnedTask {
  S surrogate;
  const T *grad, *x;
  T* of_x;

  // Fills of_x and the two sums.
  void operator()(int64_t begin, int64_t end, double* sums) const {
    using A = arithmetic_t<T>;
    constexpr bool converts = !std::is_same_v<A, T>;
    A wide_grad[converts ? kLearnedTile : 1], wide_x[converts ? kLearnedTile : 1], results[converts ? kLearnedTile : 1];
    alignas(64) double of_a[kLearnedTile], of_b[S::parameters > 1 ? kLearnedTile : 1];
    const int64_t filled = std::min(kLearnedTile, end - begin);
    std::fill(of_a, of_a + filled, 0.0);
    if constexpr (S::parameters > 1) std::fill(of_b, of_b + filled, 0.0);
    for (int64_t i = begin; i < end; i += kLearnedTile) {
      const int64_t count = std::min(kLearnedTile, end - i);
      if constexpr (converts) {
        each(Widen<T>{grad + i, wide_grad}, 0, count);
        each(Widen<T>{x + i, wide_x}, 0, count);
        each(LearnedTerm<S, A>{surrogate, wide_grad, wide_x, results, of_a, of_b}, 0, count);
        each(Narrow<T>{results, of_x + i}, 0, count);
      } else {
        each(LearnedTerm<S, A>{surrogate, grad + i, x + i, of_x + i, of_a, of_b}, 0, count);
      }
    }
    sums[0] = fold_lanes<Additive>(of_a, filled);
    sums[1] = 0;
    if constexpr (S::parameters > 1) sums[1] = fold_lanes<Additive>(of_b, filled);
  }
};

template <class S, class T>
void learned_loop(Type<T>, const S&, const LearnedCall& call) {
  const LearnedTask<S, T> task{
      S(call.parameters[0], call.parameters[1]), const_data<T>(call.grad), const_data<T>(call.x),
      mutable_data<T>(call.of_x)};
  const int64_t numel = call.x.numel(), tasks = (numel + kTask - 1) / kTask;
  std::vector<double> sums(2 * tasks);
  share_out(tasks, kLearnedNanoseconds * kTask, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) task(k * kTask, std::min(numel, (k + 1) * kTask), &sums[2 * k]);
  });
  double* totals = mutable_data<double>(call.of_parameters);
  for (int64_t j = 0; j < 2; ++j) {
    totals[j] = sums[j];
    for (int64_t k = 1; k < tasks; ++k) totals[j] += sums[2 * k + j];
  }
}

std::tuple<Tensor, Tensor> learned_surrogate_backward_cpu(Tensor grad, Tensor x, int64_t surrogate, Tensor parameters) {
  constexpr const char* op = "learned_surrogate_backward";
  const LearnedCall call = prepare_learned(op, grad, x, surrogate, parameters);
  dispatch_learned(op, x, surrogate, [&](auto type, const auto& s) { learned_loop(type, s, call); });
  return {call.of_x, call.of_parameters};
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("learned_surrogate_backward", TORCH_BOX(&learned_surrogate_backward_cpu)); }

}  // namespace ste_ops
