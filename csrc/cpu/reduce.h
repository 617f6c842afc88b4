// Reductions over groups of elements (core/groups.h) in one pass over the memory, in an order that the shape decides:
// the same bits at any number of threads. How results join is a struct of core/reduction.h: Additive sums in float64,
// AdditivePair makes two sums, Maximum takes the largest value, and a NaN wins.
//
//   struct Magnitude { const T* x; double operator()(int64_t i, int64_t lane) const { ... } };
//   reduce_groups<Additive, A>(groups, sums, [&](const ReduceTask&) { return Magnitude{x}; });
//
// A term may write as it reads, so that a gradient and the sum beside it are one pass.
#pragma once

#include <algorithm>
#include <memory>

#include "core/groups.h"
#include "core/reduction.h"
#include "cpu/loop.h"

namespace ste_ops {

// Accumulators of one row: they stay in the first-level cache, and adding lane by lane needs no reordering to become
// vector code.
constexpr int64_t kReduceSpan = 1024;

// Whether no row holds elements of two groups, however the groups are cut into tasks.
inline bool rows_hold_one_group(const Groups& groups) { return groups.size == 1 || groups.inner > kReduceSpan; }

template <class Reduction, class State, class Term>
STE_OPS_INLINE void add_row(const Term& term, int64_t begin, int64_t count, State* totals) {
#pragma GCC ivdep
  for (int64_t lane = 0; lane < count; ++lane) {
    totals[lane] = Reduction::combine(totals[lane], State(term(begin + lane, lane)));
  }
}

template <class Reduction, class State, class Term>
STE_OPS_BELOW_AVX512 void add_row_below_avx512(Term term, int64_t begin, int64_t count, State* totals) {
  add_row<Reduction>(term, begin, count, totals);
}

#ifdef STE_OPS_AVX512
template <class Reduction, class State, class Term>
STE_OPS_AVX512 void add_row_avx512(Term term, int64_t begin, int64_t count, State* totals) {
  add_row<Reduction>(term, begin, count, totals);
}
#endif

template <class Reduction, class State, class Term>
void reduce_row(const Term& term, int64_t begin, int64_t count, State* totals) {
#ifdef STE_OPS_AVX512
  if (has_avx512()) return add_row_avx512<Reduction>(term, begin, count, totals);
#endif
  add_row_below_avx512<Reduction>(term, begin, count, totals);
}

// The total of a group's neighbouring lanes, by independent chains of additions.
template <class Reduction, int kChains, class State>
STE_OPS_INLINE State fold_chains(const State* totals, int64_t count) {
  State chains[kChains];
  for (State& chain : chains) chain = State(Reduction::identity());
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int k = 0; k < kChains; ++k) chains[k] = Reduction::combine(chains[k], totals[i + k]);
  }
  for (int k = 0; i + k < count; ++k) chains[k] = Reduction::combine(chains[k], totals[i + k]);
  for (int step = kChains / 2; step > 0; step /= 2) {
    for (int k = 0; k < step; ++k) chains[k] = Reduction::combine(chains[k], chains[k + step]);
  }
  return chains[0];
}

template <class Reduction, class State>
STE_OPS_INLINE State fold_lanes(const State* totals, int64_t count) {
  return count >= 128 ? fold_chains<Reduction, 32>(totals, count) : fold_chains<Reduction, 8>(totals, count);
}

template <class Reduction, class State>
STE_OPS_CLONES void fold_task(
    const Partition& partition, const ReduceTask& task, const State* totals, typename Reduction::Total* results) {
  using Total = typename Reduction::Total;
  const Groups& groups = partition.groups;
  const int64_t filled = task.length < task.width ? task.length : task.width;
  Total* of_part = results + (task.batch * partition.parts() + task.part) * groups.size;
  if (groups.inner >= filled) {
    of_part[task.first] = Total(fold_lanes<Reduction>(totals, filled));
    return;
  }
  const int64_t columns = filled / groups.inner, slab = columns < groups.size ? columns : groups.size;
  for (int64_t c = 0; c < slab; ++c) {
    of_part[task.first + c] = Total(fold_lanes<Reduction>(totals + c * groups.inner, groups.inner));
  }
  for (int64_t from = slab; from < columns; from += slab) {
    for (int64_t c = 0; c < slab; ++c) {
      const State* lanes = totals + (from + c) * groups.inner;
      const State one = groups.inner == 1 ? *lanes : fold_lanes<Reduction>(lanes, groups.inner);
      of_part[c] = Reduction::combine(of_part[c], Total(one));
    }
  }
}

// Fills the accumulators of a task's lanes.
template <class Reduction, class State, class Term>
void reduce_task(const ReduceTask& task, const Term& term, State* of_lane) {
  const int64_t filled = task.length < task.width ? task.length : task.width;
  for (int64_t lane = 0; lane < filled; ++lane) of_lane[lane] = State(Reduction::identity());
  for (int64_t outer = 0; outer < task.outers; ++outer) {
    for (int64_t at = 0; at < task.length; at += task.width) {
      const int64_t count = task.length - at < task.width ? task.length - at : task.width;
      reduce_row<Reduction>(term, task.begin + outer * task.stride + at, count, of_lane);
    }
  }
}

// The totals of groups from the results of their parts, in order.
template <class Reduction, class Total>
void join_parts(const Partition& partition, const Total* results, Total* totals) {
  const int64_t parts = partition.parts(), size = partition.groups.size;
  for (int64_t batch = 0; batch < partition.groups.batch; ++batch) {
    const Total* of_batch = results + batch * parts * size;
    Total* out = totals + batch * size;
    for (int64_t c = 0; c < size; ++c) out[c] = of_batch[c];
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t c = 0; c < size; ++c) out[c] = Reduction::combine(out[c], of_batch[part * size + c]);
    }
  }
}

// The total of each group. `make_term(task)` gives what one task adds: term(i, lane) for element i in lane
// `lane` of its row. A is the arithmetic of the elements.
template <class Reduction, class A, class MakeTerm>
void reduce_groups(const Groups& groups, typename Reduction::Total* totals, const MakeTerm& make_term) {
  using State = typename Reduction::template State<A>;
  using Total = typename Reduction::Total;
  const Partition partition(groups, kReduceSpan, kPart);
  const int64_t tasks = partition.tasks(), parts = partition.parts();
  if (parts == 0) return std::fill(totals, totals + groups.count(), Total(Reduction::identity()));
  std::unique_ptr<Total[]> kept(parts > 1 ? new Total[partition.results()] : nullptr);
  Total* results = parts > 1 ? kept.get() : totals;
  const int64_t grain = kGrain / std::clamp(groups.numel() / std::max<int64_t>(tasks, 1), int64_t(1), kGrain);
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    alignas(64) State of_lane[kReduceSpan];
    for (int64_t number = begin; number < end; ++number) {
      const ReduceTask task = partition.task(number);
      reduce_task<Reduction>(task, make_term(task), of_lane);
      fold_task<Reduction>(partition, task, of_lane, results);
    }
  });
  if (parts > 1) join_parts<Reduction>(partition, results, totals);
}

}  // namespace ste_ops
