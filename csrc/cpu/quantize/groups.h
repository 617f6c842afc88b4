// Element-wise loops in which the elements of a group (core/axis.h) share a parameter.
#pragma once

#include "../../core/axis.h"
#include "../loop.h"

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
STE_OPS_BELOW_AVX512 void visit_groups_below_avx512(F f, const Groups& groups, const P* parameters, int64_t begin,
                                                    int64_t end) {
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

// Whether each group is one run of memory, and the cache holds it between two readings.
inline bool are_short_runs(const Groups& groups) {
  return groups.batch == 1 && groups.outer == 1 && groups.inner >= 64 && groups.inner <= 16384;
}

// The total of term(i, 0) over [begin, end), in lanes that make the same order on every level of the instruction set.
template <class Reduction, class State, class Term>
STE_OPS_INLINE double total_of_run(Term term, int64_t begin, int64_t end) {
  constexpr int kLanes = 32;
  State lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = State(Reduction::identity());
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = Reduction::combine(lanes[l], State(term(i + l, 0)));
  }
  for (int l = 0; i + l < end; ++l) lanes[l] = Reduction::combine(lanes[l], State(term(i + l, 0)));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = Reduction::combine(lanes[l], lanes[l + width]);
  }
  return double(lanes[0]);
}

template <class Reduction, class State, class Term, class F, class Finish>
STE_OPS_INLINE void visit_runs(const Groups& groups, Term term, F f, const Finish& finish, int64_t first,
                               int64_t last) {
  for (int64_t group = first; group < last; ++group) {
    const int64_t begin = group * groups.inner, end = begin + groups.inner;
    const auto parameter = finish(group, total_of_run<Reduction, State>(term, begin, end));
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) f(i, parameter);
  }
}

template <class Reduction, class State, class Term, class F, class Finish>
STE_OPS_BELOW_AVX512 void visit_runs_below_avx512(const Groups& groups, Term term, F f, const Finish& finish,
                                                  int64_t first, int64_t last) {
  visit_runs<Reduction, State>(groups, term, f, finish, first, last);
}

#ifdef STE_OPS_AVX512
template <class Reduction, class State, class Term, class F, class Finish>
STE_OPS_AVX512 void visit_runs_avx512(const Groups& groups, Term term, F f, const Finish& finish, int64_t first,
                                      int64_t last) {
  visit_runs<Reduction, State>(groups, term, f, finish, first, last);
}
#endif

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

}  // namespace ste_ops
