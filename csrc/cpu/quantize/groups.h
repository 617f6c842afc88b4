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

}  // namespace ste_ops
