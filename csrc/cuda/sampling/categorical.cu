// Draws from softmax(logits), their gradients, and the noise that they take.
#include <tuple>

#include "core/groups.h"
#include "cuda/sampling/logit_rows.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Moves: reads rows * n * T + 8 * seeds (again all), writes rows * n * T + 8 * rows.
template <class T, class Team>
__global__ void __launch_bounds__(kRowThreads)
    categorical_kernel(Team team, RowShape shape, const T* logits, const uint64_t* seeds, T* out, int64_t* index) {
  using A = arithmetic_t<T>;
  for (int64_t first = int64_t(blockIdx.x) * team.per_block(); first < shape.rows;
       first += int64_t(gridDim.x) * team.per_block()) {
    const int64_t row = first + team.slot(), n = row < shape.rows ? shape.n : 0;
    const T* x = logits + row * shape.n;
    const A largest = largest_logit(team, x, n);
    Best<A> best = Best<A>::none();
    if (n > 0) {
      const uint64_t seed = seeds[shape.seed(row)], place = shape.place(row);
      team.each(n, [&](int64_t i) {
        A key = (load(x[i]) - largest) + gumbel_at<A>(seed, place + uint64_t(i));
        best = Better()(best, Best<A>{i, key});
      });
    }
    best = team.reduce(best, Better(), Best<A>::none());
    const bool drawable = is_drawable(largest);
    team.each(n, [&](int64_t i) {
      out[row * shape.n + i] = store<T>(drawable ? A(i == best.index ? 1 : 0) : quiet_nan<A>());
    });
    if (n > 0 && team.leads()) index[row] = drawable ? best.index : -1;
  }
}

template <class T>
struct LaunchDraws {
  const Launcher& launch;
  const CategoricalDraws& call;

  template <class Team>
  void operator()(Team team, int64_t blocks) const {
    launch(
        categorical_kernel<T, Team>, std::min(blocks, kMaxRowBlocks), kRowThreads, team, call.logits.shape,
        typed_data<T>(call.logits.dense), unsigned_data(call.logits.seed), mutable_typed_data<T>(call.out),
        mutable_typed_data<int64_t>(call.index));
  }
};

std::tuple<Tensor, Tensor> categorical_cuda(Tensor logits, Tensor seed) {
  Launcher launch(logits);
  const CategoricalDraws call(logits, seed);
  dispatch_logits(call.op, call.logits, [&](auto type) {
    with_team(call.logits.shape, LaunchDraws<typename decltype(type)::type>{launch, call});
  });
  return {in_layout_of_input(logits, call.out), call.index};
}

// What an element of the row is to its softmax: e^z, and the same at tau = 1.
template <class T, bool kNoisy>
struct RowSoftmax {
  using A = arithmetic_t<T>;
  const T* x;
  uint64_t seed, place;
  A largest, center, inv_tau;

  __device__ A key(int64_t i) const {
    A shifted = load(x[i]) - largest;
    if constexpr (kNoisy) shifted = shifted + gumbel_at<A>(seed, place + uint64_t(i));
    return shifted;
  }
  __device__ A exponential(A key) const { return portable_exp_bounded((key - center) * inv_tau); }
};

// Moves: reads 2 * rows * n * T + 8 * drawn + 8 * seeds (again all), writes rows * n * T; drawn is rows or 0.
template <class T, class Team, Estimator kEstimator>
__global__ void __launch_bounds__(kRowThreads) categorical_backward_kernel(
    Team team, RowShape shape, arithmetic_t<T> inv_tau, const T* grad, const T* logits, const uint64_t* seeds,
    const int64_t* index, T* out) {
  using A = arithmetic_t<T>;
  constexpr bool kNoisy = kEstimator == kGumbel, kSecond = kEstimator == kReinMax;
  for (int64_t first = int64_t(blockIdx.x) * team.per_block(); first < shape.rows;
       first += int64_t(gridDim.x) * team.per_block()) {
    const int64_t row = first + team.slot(), n = row < shape.rows ? shape.n : 0;
    const T* g = grad + row * shape.n;
    RowSoftmax<T, kNoisy> softmax{logits + row * shape.n, 0, 0, A(0), A(0), inv_tau};
    softmax.largest = largest_logit(team, softmax.x, n);
    A drawn = A(0);
    int64_t at = -1;
    if (kEstimator != kStraightThrough && n > 0) {
      at = index[row];
      const bool inside = at >= 0 && at < n;
      drawn = inside ? load(g[at]) : quiet_nan<A>();
      if (kNoisy) {
        softmax.seed = seeds[shape.seed(row)];
        softmax.place = shape.place(row);
        softmax.center = inside ? softmax.key(at) : quiet_nan<A>();
      }
    }
    const SoftmaxSums<A> sums = team.sum(n, SoftmaxSums<A>{A(0), A(0), A(0), A(0)}, [&](int64_t i) {
      const A key = softmax.key(i), e = softmax.exponential(key), gi = load(g[i]);
      const A one = kSecond ? portable_exp_bounded(key) : A(0);
      return SoftmaxSums<A>{e, e * gi, one, one * gi};
    });
    const RowGradient<A> gradient(sums, drawn, at, inv_tau, kSecond);
    team.each(n, [&](int64_t i) {
      const A key = softmax.key(i), e = softmax.exponential(key), gi = load(g[i]);
      const A value = kSecond ? gradient.second_order(e, portable_exp_bounded(key), gi, i) : gradient.softmax(e, gi);
      out[row * shape.n + i] = store<T>(value);
    });
  }
}

template <class T, class Team>
auto kernel_of(Estimator estimator) {
  switch (estimator) {
    case kGumbel: return categorical_backward_kernel<T, Team, kGumbel>;
    case kReinMax: return categorical_backward_kernel<T, Team, kReinMax>;
    default: return categorical_backward_kernel<T, Team, kStraightThrough>;
  }
}

template <class T>
struct LaunchGradient {
  const Launcher& launch;
  const CategoricalGradient& call;

  template <class Team>
  void operator()(Team team, int64_t blocks) const {
    const Logits& logits = call.logits;
    launch(
        kernel_of<T, Team>(call.estimator), std::min(blocks, kMaxRowBlocks), kRowThreads, team, logits.shape,
        arithmetic_t<T>(call.inv_tau), typed_data<T>(call.grad), typed_data<T>(logits.dense),
        unsigned_data(logits.seed), typed_data<int64_t>(call.index), mutable_typed_data<T>(call.out));
  }
};

Tensor categorical_backward_cuda(Tensor grad, Tensor logits, Tensor seed, Tensor index, int64_t estimator, double tau) {
  Launcher launch(logits);
  const CategoricalGradient call = prepare_categorical_gradient(grad, logits, seed, index, estimator, tau);
  dispatch_logits(call.op, call.logits, [&](auto type) {
    with_team(call.logits.shape, LaunchGradient<typename decltype(type)::type>{launch, call});
  });
  return in_layout_of_input(logits, call.out);
}

// Moves: reads 8 * seeds, writes rows * n * A.
template <class A>
__global__ void gumbel_noise_kernel(RowShape shape, const uint64_t* seeds, A* out) {
  const int64_t numel = shape.per_seed * shape.n;
  for (int64_t i = grid_index(); i < shape.rows * shape.n; i += grid_stride()) {
    const int64_t seed = divided(i, numel);
    out[i] = gumbel_at<A>(seeds[seed], uint64_t(i - seed * numel));
  }
}

template <class A>
void fill_noise(const Launcher& launch, const GumbelNoise& call) {
  const RowShape& shape = call.logits.shape;
  launch(
      gumbel_noise_kernel<A>, std::min(blocks_for(shape.rows * shape.n, kRowThreads), kMaxRowBlocks), kRowThreads,
      shape, unsigned_data(call.logits.seed), mutable_typed_data<A>(call.out));
}

Tensor gumbel_noise_cuda(Tensor logits, Tensor seed) {
  Launcher launch(logits);
  const GumbelNoise call(logits, seed);
  dispatch_logits(
      call.op, call.logits, [&](auto type) { fill_noise<arithmetic_t<typename decltype(type)::type>>(launch, call); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("categorical", TORCH_BOX(&categorical_cuda));
  m.impl("categorical_backward", TORCH_BOX(&categorical_backward_cuda));
  m.impl("gumbel_noise", TORCH_BOX(&gumbel_noise_cuda));
}

}  // namespace ste_ops
