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

std::tuple<Tensor, Tensor> categorical_cuda(Tensor logits, Tensor seed) {
  Launcher launch(logits);
  return categorical(
      logits, seed,
      [&](auto type, const Tensor&, const RowShape& shape, const auto* x, const uint64_t* seeds, auto* out,
          int64_t* index) {
        using T = typename decltype(type)::type;
        with_team(shape, [&](auto team, int64_t blocks) {
          launch(
              categorical_kernel<T, decltype(team)>, std::min(blocks, kMaxRowBlocks), kRowThreads, team, shape, x,
              seeds, out, index);
        });
      });
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

Tensor categorical_backward_cuda(Tensor grad, Tensor logits, Tensor seed, Tensor index, int64_t estimator, double tau) {
  Launcher launch(logits);
  return categorical_backward(
      grad, logits, seed, index, estimator, tau,
      [&](auto type, const Tensor&, const RowShape& shape, Estimator estimator, auto inv_tau, const auto* grad,
          const auto* x, const uint64_t* seeds, const int64_t* index, auto* out) {
        using T = typename decltype(type)::type;
        with_team(shape, [&](auto team, int64_t blocks) {
          using Team = decltype(team);
          auto* kernel = estimator == kGumbel    ? categorical_backward_kernel<T, Team, kGumbel>
                         : estimator == kReinMax ? categorical_backward_kernel<T, Team, kReinMax>
                                                 : categorical_backward_kernel<T, Team, kStraightThrough>;
          launch(
              kernel, std::min(blocks, kMaxRowBlocks), kRowThreads, team, shape, inv_tau, grad, x, seeds, index, out);
        });
      });
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

Tensor gumbel_noise_cuda(Tensor logits, Tensor seed) {
  Launcher launch(logits);
  return gumbel_noise(
      logits, seed, [&](auto type, const Tensor&, const RowShape& shape, const uint64_t* seeds, auto* out) {
        using A = typename decltype(type)::type;
        launch(
            gumbel_noise_kernel<A>, std::min(blocks_for(shape.rows * shape.n, kRowThreads), kMaxRowBlocks), kRowThreads,
            shape, seeds, out);
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("categorical", TORCH_BOX(&categorical_cuda));
  m.impl("categorical_backward", TORCH_BOX(&categorical_backward_cuda));
  m.impl("gumbel_noise", TORCH_BOX(&gumbel_noise_cuda));
}

}  // namespace ste_ops
