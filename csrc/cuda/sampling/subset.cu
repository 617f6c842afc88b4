// Draws of k out of n, and the gradients of their relaxation.
#include "ops/sampling/subset.h"

#include "cuda/sampling/logit_rows.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Integers that have the order of the numbers.
STE_HD uint32_t ordered(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
STE_HD uint64_t ordered(double x) {
  uint64_t bits = bit_cast<uint64_t>(x);
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

// Writes a row's keys: its logits minus the largest, plus the noise of their places.
template <class Team, class T>
__device__ void write_keys(
    const Team& team, const RowShape& shape, int64_t row, int64_t n, const T* x, arithmetic_t<T> largest,
    const uint64_t* seeds, arithmetic_t<T>* keys) {
  using A = arithmetic_t<T>;
  if (n > 0) {
    const uint64_t seed = seeds[shape.seed(row)], place = shape.place(row);
    team.each(n, [&](int64_t i) { keys[i] = (load(x[i]) - largest) + gumbel_at<A>(seed, place + uint64_t(i)); });
  }
  team.sync();
}

// Finds the k largest keys: first the bits of the least of them, then those of the last index among its equals.
// Moves: reads n * (rows * T + teams * A) + 8 * seeds (again all), writes n * (rows * T + teams * A); teams at once.
template <class T, class Team>
__global__ void __launch_bounds__(kRowThreads, 1) subset_kernel(
    Team team, RowShape shape, int64_t k, const T* logits, const uint64_t* seeds, T* out, arithmetic_t<T>* memory) {
  using A = arithmetic_t<T>;
  using U = bits_t<A>;
  constexpr int kBits = 8 * int(sizeof(U));
  const int index_bits = bit_width(uint64_t(shape.n));
  A* keys = memory + (int64_t(blockIdx.x) * team.per_block() + team.slot()) * shape.n;
  for (int64_t first = int64_t(blockIdx.x) * team.per_block(); first < shape.rows;
       first += int64_t(gridDim.x) * team.per_block()) {
    const int64_t row = first + team.slot(), n = row < shape.rows ? shape.n : 0;
    const T* x = logits + row * shape.n;
    const A largest = largest_logit(team, x, n);
    write_keys(team, shape, row, n, x, largest, seeds, keys);
    // Equal keys are chosen in front of the limit.
    const auto chosen = [&](int64_t i, U least, int64_t limit) {
      const U key = ordered(keys[i]);
      return key > least || (key == least && i < limit);
    };
    U least = 0;
    int64_t last = 0;
    for (int bit = kBits + index_bits - 1; bit >= 0; --bit) {
      const bool of_key = bit >= index_bits;
      const U candidate = of_key ? least | U(1) << (bit - index_bits) : least;
      const int64_t limit = of_key ? n : last | int64_t(1) << bit;
      const int64_t count = team.sum(n, int64_t(0), [&](int64_t i) { return int64_t(chosen(i, candidate, limit)); });
      if (of_key && count >= k) least = candidate;
      if (!of_key && count < k) last = limit;
    }
    const bool drawable = is_drawable(largest) && least > ordered(-Floating<A>::infinity);
    team.each(n, [&](int64_t i) {
      out[row * shape.n + i] = store<T>(drawable ? A(chosen(i, least, last + 1) ? 1 : 0) : quiet_nan<A>());
    });
    team.sync();  // the keys are free for the next row
  }
}

// Memory of a team: numbers in A, then the softmaxes.
template <class A>
struct SubsetMemory {
  A *a, *t, *kept, *f;
  SubsetSoftmax<A>* softmaxes;

  STE_HD static int64_t numbers(int64_t n, const SubsetPlan& plan) { return n * (2 + plan.segments + plan.length); }
  STE_HD SubsetMemory(
      A* numbers_of_all, SubsetSoftmax<A>* softmaxes_of_all, int64_t team, int64_t n, const SubsetPlan& plan)
      : a(numbers_of_all + team * numbers(n, plan)),
        t(a + n),
        kept(t + n),
        f(kept + n * plan.segments),
        softmaxes(softmaxes_of_all + team * plan.k) {}
};

template <class A, class Team>
__device__ void next_logits(const Team& team, int64_t n, const SubsetSoftmax<A>& softmax, const A* f, A* a) {
  team.each(n, [&](int64_t i) { a[i] = i == softmax.top ? a[i] + softmax.log_left : softmax.next(a[i], f[i]); });
  team.sync();
}

template <class A, class Team>
__device__ A write_weights(const Team& team, int64_t n, const SubsetSoftmax<A>& softmax, A inv_tau, const A* a, A* f) {
  const A rest = team.sum(n, A(0), [&](int64_t i) {
    f[i] = i == softmax.top ? A(0) : softmax.weight(a[i], inv_tau);
    return f[i];
  });
  team.sync();
  return rest;
}

// Moves: no fixed number: 2 * rows * n * T read, rows * n * T written, and k passes over the memory of a team.
template <class T, class Team>
__global__ void __launch_bounds__(kRowThreads, 1) subset_backward_kernel(
    Team team, RowShape shape, SubsetPlan plan, arithmetic_t<T> inv_tau, const T* grad, const T* logits,
    const uint64_t* seeds, T* out, arithmetic_t<T>* numbers, SubsetSoftmax<arithmetic_t<T>>* softmaxes) {
  using A = arithmetic_t<T>;
  const SubsetMemory<A> m(numbers, softmaxes, int64_t(blockIdx.x) * team.per_block() + team.slot(), shape.n, plan);
  for (int64_t first = int64_t(blockIdx.x) * team.per_block(); first < shape.rows;
       first += int64_t(gridDim.x) * team.per_block()) {
    const int64_t row = first + team.slot(), n = row < shape.rows ? shape.n : 0;
    const T *x = logits + row * shape.n, *g = grad + row * shape.n;
    write_keys(team, shape, row, n, x, largest_logit(team, x, n), seeds, m.a);
    A* kept = m.kept;
    for (int64_t j = 0, until = 0; j < plan.k; ++j, --until) {
      TopTwo<A> tops = TopTwo<A>::none();
      team.each(n, [&](int64_t i) {
        if (until == 0) kept[i] = m.a[i];
        tops = MergeTops()(tops, TopTwo<A>{i, m.a[i], -Floating<A>::infinity});
      });
      tops = team.reduce(tops, MergeTops(), TopTwo<A>::none());
      SubsetSoftmax<A> softmax(tops);
      softmax.finish(tops, write_weights(team, n, softmax, inv_tau, m.a, m.f), inv_tau);
      if (team.leads()) m.softmaxes[j] = softmax;
      if (j < plan.k - 1) next_logits(team, n, softmax, m.f, m.a);
      if (until == 0) {
        kept += n;
        until = plan.length;
      }
    }
    team.each(n, [&](int64_t i) { m.t[i] = A(0); });
    team.sync();
    for (int64_t segment = plan.segments - 1; segment >= 0; --segment) {
      const int64_t begin = segment * plan.length;
      const int64_t last = (begin + plan.length < plan.k ? begin + plan.length : plan.k) - 1;
      A* a = m.kept + segment * n;
      for (int64_t j = begin; j <= last; ++j) {
        write_weights(team, n, m.softmaxes[j], inv_tau, a, m.f + (j - begin) * n);
        if (j < last) next_logits(team, n, m.softmaxes[j], m.f + (j - begin) * n, a);
      }
      for (int64_t j = last; j >= begin; --j) {
        const SubsetSoftmax<A> softmax = m.softmaxes[j];
        const A* f = m.f + (j - begin) * n;
        const A t_top = softmax.top >= 0 && softmax.top < n ? m.t[softmax.top] : quiet_nan<A>();
        const SubsetSums<A> sums = team.sum(n, SubsetSums<A>{A(0), A(0)}, [&](int64_t i) {
          const A p = f[i] * softmax.scale;
          return SubsetSums<A>{i == softmax.top ? softmax.p_top * load(g[i]) : p * load(g[i]), handed_back(p, m.t[i])};
        });
        const SubsetPull<A> pull{softmax, sums, t_top, inv_tau};
        team.sync();  // all have read t_top
        team.each(n, [&](int64_t i) {
          m.t[i] = i == softmax.top ? pull.top(load(g[i])) : pull.other(f[i], load(g[i]), m.t[i]);
        });
        team.sync();
      }
    }
    team.each(n, [&](int64_t i) { out[row * shape.n + i] = store<T>(m.t[i]); });
    team.sync();
  }
}

// As many blocks as keep the multiprocessors busy while the memory of their teams stays below a quarter of a GiB.
template <class Team>
int64_t busy_blocks(const Launcher& launch, const Team& team, int64_t blocks, int64_t bytes_of_team) {
  const int64_t fit = (int64_t(1) << 28) / (bytes_of_team * team.per_block());
  return std::min({blocks, int64_t(launch.multiprocessors()) * 8, std::max<int64_t>(fit, 1)});
}

template <class T>
struct LaunchSubsets {
  const Launcher& launch;
  const SubsetDraws& call;

  template <class Team>
  void operator()(Team team, int64_t all_blocks) const {
    using A = arithmetic_t<T>;
    const Logits& logits = call.logits;
    const int64_t n = logits.shape.n, blocks = busy_blocks(launch, team, all_blocks, n * int64_t(sizeof(A)));
    Tensor keys = empty_vector(blocks * team.per_block() * n, arithmetic_type(logits.dense), logits.dense);
    launch(
        subset_kernel<T, Team>, blocks, kRowThreads, team, logits.shape, call.k, typed_data<T>(logits.dense),
        unsigned_data(logits.seed), mutable_typed_data<T>(call.out), mutable_typed_data<A>(keys));
  }
};

Tensor subset_cuda(Tensor logits, Tensor seed, int64_t k) {
  Launcher launch(logits);
  const SubsetDraws call = prepare_subset_draws(logits, seed, k);
  dispatch_logits(call.op, call.logits, [&](auto type) {
    with_team(call.logits.shape, LaunchSubsets<typename decltype(type)::type>{launch, call});
  });
  return in_layout_of_input(logits, call.out);
}

template <class T>
struct LaunchSubsetGradients {
  const Launcher& launch;
  const SubsetGradient& call;

  template <class Team>
  void operator()(Team team, int64_t all_blocks) const {
    using A = arithmetic_t<T>;
    const Logits& logits = call.logits;
    const SubsetPlan plan(call.k);
    const int64_t numbers = SubsetMemory<A>::numbers(logits.shape.n, plan);
    const int64_t bytes_of_softmaxes = call.k * int64_t(sizeof(SubsetSoftmax<A>));
    const int64_t blocks = busy_blocks(launch, team, all_blocks, numbers * int64_t(sizeof(A)) + bytes_of_softmaxes);
    const int64_t teams = blocks * team.per_block();
    Tensor memory = empty_vector(teams * numbers, arithmetic_type(logits.dense), logits.dense);
    Tensor softmaxes = empty_vector(teams * bytes_of_softmaxes, ScalarType::Byte, logits.dense);
    launch(
        subset_backward_kernel<T, Team>, blocks, kRowThreads, team, logits.shape, plan, A(call.inv_tau),
        typed_data<T>(call.grad), typed_data<T>(logits.dense), unsigned_data(logits.seed),
        mutable_typed_data<T>(call.out), mutable_typed_data<A>(memory),
        mutable_typed_data<SubsetSoftmax<A>>(softmaxes));
  }
};

Tensor subset_backward_cuda(Tensor grad, Tensor logits, Tensor seed, int64_t k, double tau) {
  Launcher launch(logits);
  const SubsetGradient call = prepare_subset_gradient(grad, logits, seed, k, tau);
  dispatch_logits(call.op, call.logits, [&](auto type) {
    with_team(call.logits.shape, LaunchSubsetGradients<typename decltype(type)::type>{launch, call});
  });
  return in_layout_of_input(logits, call.out);
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("subset", TORCH_BOX(&subset_cuda));
  m.impl("subset_backward", TORCH_BOX(&subset_backward_cuda));
}

}  // namespace ste_ops
