// Loops in which the elements of a group (core/groups.h) share a parameter, and reductions that give them one.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/reduce.h"

namespace ste_ops {

// Calls f(i, parameter of its group) for i in [begin, end).
template <class F, class P>
STE_OPS_INLINE void visit_groups(F f, const Groups& groups, const P* parameters, int64_t begin, int64_t end) {
  if (groups.inner == 1 && groups.size > 1) {
    for (int64_t stop; begin < end; begin = stop) {
      const int64_t first = groups.of(begin), c = first % groups.size;
      stop = end - begin < groups.size - c ? end : begin + (groups.size - c);
      const P* parameter = parameters + first;
#pragma GCC ivdep
      for (int64_t k = 0; k < stop - begin; ++k) f(begin + k, parameter[k]);
    }
    return;
  }
  for (int64_t stop; begin < end; begin = stop) {
    const int64_t left = groups.inner - begin % groups.inner;
    stop = end - begin < left ? end : begin + left;
    const P parameter = parameters[groups.of(begin)];
#pragma GCC ivdep
    for (int64_t i = begin; i < stop; ++i) f(i, parameter);
  }
}

template <class F, class P>
STE_OPS_BELOW_AVX512 void visit_groups_below_avx512(
    F f, const Groups& groups, const P* parameters, int64_t begin, int64_t end) {
  visit_groups(f, groups, parameters, begin, end);
}

#ifdef STE_OPS_AVX512
template <class F, class P>
STE_OPS_AVX512 void visit_groups_avx512(F f, const Groups& groups, const P* parameters, int64_t begin, int64_t end) {
  visit_groups(f, groups, parameters, begin, end);
}
#endif

// In parallel over all elements. The functor reads and writes through pointers of its own, none into another's output.
template <class F, class P>
void each_in_groups(F f, const Groups& groups, const P* parameters) {
  torch::stable::parallel_for(0, groups.numel(), kGrain, [&](int64_t begin, int64_t end) {
#ifdef STE_OPS_AVX512
    if (has_avx512()) return visit_groups_avx512(f, groups, parameters, begin, end);
#endif
    visit_groups_below_avx512(f, groups, parameters, begin, end);
  });
}

// out = f(x, parameter).
template <class F, class T, class P>
struct MapOne {
  F f;
  const T* x;
  T* out;
  STE_OPS_INLINE void operator()(int64_t i, P parameter) const { out[i] = store<T>(f(load(x[i]), parameter)); }
};

// out = f(grad, x, parameter).
template <class F, class T, class P>
struct MapTwo {
  F f;
  const T *grad, *x;
  T* out;
  STE_OPS_INLINE void operator()(int64_t i, P parameter) const {
    out[i] = store<T>(f(load(grad[i]), load(x[i]), parameter));
  }
};

template <class F, class T, class P>
void map_in_groups(F f, const Groups& groups, const P* parameters, const T* x, T* out) {
  each_in_groups(MapOne<F, T, P>{f, x, out}, groups, parameters);
}

template <class F, class T, class P>
void map_in_groups(F f, const Groups& groups, const P* parameters, const T* grad, const T* x, T* out) {
  each_in_groups(MapTwo<F, T, P>{f, grad, x, out}, groups, parameters);
}

// Whether each group is one run of memory, and not so short that it is better reduced side by side with others.
inline bool are_runs(const Groups& groups) { return groups.batch == 1 && groups.outer == 1 && groups.inner >= 64; }

// And whether the cache holds a run between two readings.
inline bool are_short_runs(const Groups& groups) { return are_runs(groups) && groups.inner <= 16384; }

// The total of term(i, 0) over [begin, end), in lanes that make the same order on every level of the instruction set.
template <class Reduction, class State, class Term>
STE_OPS_INLINE double total_of_run(Term term, int64_t begin, int64_t end) {
  constexpr int kLanes = 32;
  State lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = State(Reduction::identity());
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) lanes[l] = Reduction::combine(lanes[l], State(term(i + l, 0)));
  }
  for (int l = 0; i + l < end; ++l) lanes[l] = Reduction::combine(lanes[l], State(term(i + l, 0)));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = Reduction::combine(lanes[l], lanes[l + width]);
  }
  return double(lanes[0]);
}

template <class Reduction, class State, class Term, class F, class Finish>
STE_OPS_INLINE void visit_runs(
    const Groups& groups, Term term, F f, const Finish& finish, int64_t first, int64_t last) {
  for (int64_t group = first; group < last; ++group) {
    const int64_t begin = group * groups.inner, end = begin + groups.inner;
    const auto parameter = finish(group, total_of_run<Reduction, State>(term, begin, end));
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) f(i, parameter);
  }
}

template <class Reduction, class State, class Term, class F, class Finish>
STE_OPS_BELOW_AVX512 void visit_runs_below_avx512(
    const Groups& groups, Term term, F f, const Finish& finish, int64_t first, int64_t last) {
  visit_runs<Reduction, State>(groups, term, f, finish, first, last);
}

#ifdef STE_OPS_AVX512
template <class Reduction, class State, class Term, class F, class Finish>
STE_OPS_AVX512 void visit_runs_avx512(
    const Groups& groups, Term term, F f, const Finish& finish, int64_t first, int64_t last) {
  visit_runs<Reduction, State>(groups, term, f, finish, first, last);
}
#endif

template <class Reduction, class State, class Term>
STE_OPS_BELOW_AVX512 double total_below_avx512(Term term, int64_t begin, int64_t end) {
  return total_of_run<Reduction, State>(term, begin, end);
}

#ifdef STE_OPS_AVX512
template <class Reduction, class State, class Term>
STE_OPS_AVX512 double total_avx512(Term term, int64_t begin, int64_t end) {
  return total_of_run<Reduction, State>(term, begin, end);
}
#endif

// The totals of runs, in blocks of a fixed size that are joined in order. `make_term(group)` gives what is added.
template <class Reduction, class A, class MakeTerm>
std::vector<double> reduce_runs(const Groups& groups, const MakeTerm& make_term) {
  using State = typename Reduction::template State<A>;
  constexpr int64_t kBlock = 8192;
  const int64_t blocks = (groups.inner + kBlock - 1) / kBlock, each = std::min(kBlock, groups.inner);
  std::vector<double> partials(groups.size * blocks);
  torch::stable::parallel_for(
      0, groups.size * blocks, std::max<int64_t>(1, kGrain / each), [&](int64_t first, int64_t last) {
        for (int64_t b = first; b < last; ++b) {
          const int64_t run = b / blocks * groups.inner, begin = run + b % blocks * kBlock;
          const int64_t end = std::min(begin + kBlock, run + groups.inner);
          const auto term = make_term(b / blocks);
#ifdef STE_OPS_AVX512
          if (has_avx512()) {
            partials[b] = total_avx512<Reduction, State>(term, begin, end);
            continue;
          }
#endif
          partials[b] = total_below_avx512<Reduction, State>(term, begin, end);
        }
      });
  if (blocks == 1) return partials;
  std::vector<double> totals(groups.size, Reduction::identity());
  for (int64_t b = 0; b < groups.size * blocks; ++b) {
    totals[b / blocks] = Reduction::combine(totals[b / blocks], partials[b]);
  }
  return totals;
}

// The totals of any groups; the term is the same for all.
template <class Reduction, class A, class Term>
std::vector<double> reduce_each(const Groups& groups, Term term) {
  if (are_runs(groups)) return reduce_runs<Reduction, A>(groups, [&](int64_t) { return term; });
  std::vector<double> totals(groups.count());
  reduce_groups<Reduction, A>(groups, totals.data(), [&](const ReduceTask&) { return term; });
  return totals;
}

// Of short runs: reduces each and calls f(i, finish(group, total)) for its elements while they are still in the cache.
template <class Reduction, class A, class Term, class F, class Finish>
void reduce_and_visit_runs(const Groups& groups, Term term, F f, const Finish& finish) {
  using State = typename Reduction::template State<A>;
  torch::stable::parallel_for(0, groups.size, 1 + kGrain / groups.inner, [&](int64_t first, int64_t last) {
#ifdef STE_OPS_AVX512
    if (has_avx512()) return visit_runs_avx512<Reduction, State>(groups, term, f, finish, first, last);
#endif
    visit_runs_below_avx512<Reduction, State>(groups, term, f, finish, first, last);
  });
}

// Calls f(i, finish(group, total)) for the elements of any groups.
template <class Reduction, class A, class Term, class F, class Finish>
void reduce_and_visit(const Groups& groups, Term term, F f, const Finish& finish) {
  if (are_short_runs(groups)) return reduce_and_visit_runs<Reduction, A>(groups, term, f, finish);
  const std::vector<double> totals = reduce_each<Reduction, A>(groups, term);
  std::vector<decltype(finish(int64_t(), double()))> parameters(groups.count());
  for (int64_t group = 0; group < groups.count(); ++group) parameters[group] = finish(group, totals[group]);
  each_in_groups(f, groups, parameters.data());
}

}  // namespace ste_ops
