// The relaxed choice of k for a block of short rows (short_rows.h): what one row of subset.cpp does, for all of them at
// once.
#pragma once

#include <algorithm>

#include "core/sampling/subset.h"
#include "cpu/sampling/short_rows.h"

namespace ste_ops {

// Of two elements of each row, which comes before the other.
template <class A>
STE_OPS_INLINE void count_before(const A* early, const A* late, int64_t rows, A* before_early, A* before_late) {
#pragma GCC ivdep
  for (int64_t r = 0; r < rows; ++r) {
    const A first = early[r] >= late[r] ? A(1) : A(0);
    before_early[r] += A(1) - first;
    before_late[r] += first;
  }
}

// Writes 1 at the k largest keys of each row, of equal ones the first: those with fewer than k before them. `finite`
// becomes the number of keys of each row that are finite.
template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void choose_in_short_rows(const A* keys, int64_t rows, int64_t n, int64_t k, A* finite, T* out) {
  A before[kRowTile];
  for (int64_t i = 0; i < rows * n; ++i) before[i] = A(0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) {
      count_before(keys + i * rows, keys + j * rows, rows, before + i * rows, before + j * rows);
    }
  }
  for (int64_t r = 0; r < rows; ++r) finite[r] = A(0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) finite[r] += keys[i * rows + r] >= -kHuge<A> ? A(1) : A(0);
  }
  for (int64_t i = 0; i < rows * n; ++i) before[i] = before[i] < A(k) ? A(1) : A(0);
  transposed_out(before, rows, n, out);
}

// The SubsetStep of every row of a block, in memory of kNumbers times as many rows; `top` is a number as in
// short_places.
template <class A>
struct ShortSteps {
  static constexpr int kNumbers = 6;
  A *top, *center, *scale, *share, *p_top, *log_left;

  ShortSteps(A* memory, int64_t rows)
      : top(memory),
        center(memory + rows),
        scale(memory + 2 * rows),
        share(memory + 3 * rows),
        p_top(memory + 4 * rows),
        log_left(memory + 5 * rows) {}

  STE_OPS_INLINE SubsetStep<A> of(int64_t r) const {
    SubsetStep<A> step;
    step.top = 0;
    step.center = center[r];
    step.scale = scale[r];
    step.share = share[r];
    step.p_top = p_top[r];
    step.log_left = log_left[r];
    return step;
  }
};

// f of all elements, 0 at the top of each row.
template <class A>
STE_OPS_CLONES void short_weights(const A* a, int64_t rows, int64_t n, ShortSteps<A> steps, A inv_tau, A* f) {
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const A weight = steps.of(r).weight(a[i * rows + r], inv_tau);
      f[i * rows + r] = steps.top[r] == A(i) ? A(0) : weight;
    }
  }
}

template <class A>
STE_OPS_CLONES void short_steps(const A* a, int64_t rows, int64_t n, A inv_tau, ShortSteps<A> steps, A* f) {
  constexpr A kNone = -Floating<A>::infinity;
  A first[kRowTile], second[kRowTile], rest[kRowTile];
  short_largest(a, rows, n, first);
  short_places(a, first, rows, n, steps.top);
  for (int64_t r = 0; r < rows; ++r) second[r] = kNone;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const A larger = MaxOrNaN()(second[r], a[i * rows + r]);
      second[r] = steps.top[r] == A(i) ? second[r] : larger;
    }
  }
#pragma GCC ivdep
  for (int64_t r = 0; r < rows; ++r) {
    second[r] = second[r] > kNone ? second[r] : kNone;  // not NaN: as MergeTops
    steps.center[r] = SubsetStep<A>::center_of({0, first[r], second[r]});
  }
  short_weights(a, rows, n, steps, inv_tau, f);
  short_sums(f, rows, n, rest);
#pragma GCC ivdep
  for (int64_t r = 0; r < rows; ++r) {
    SubsetStep<A> step;
    step.center = steps.center[r];
    step.finish({0, first[r], second[r]}, rest[r], inv_tau);
    steps.scale[r] = step.scale;
    steps.share[r] = step.share;
    steps.p_top[r] = step.p_top;
    steps.log_left[r] = step.log_left;
  }
}

template <class A>
STE_OPS_CLONES void short_next(A* a, const A* f, int64_t rows, int64_t n, ShortSteps<A> steps) {
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const A at = a[i * rows + r], next = steps.of(r).next(at, f[i * rows + r]);
      a[i * rows + r] = steps.top[r] == A(i) ? at + steps.log_left[r] : next;
    }
  }
}

template <class A>
STE_OPS_CLONES void short_pull(const A* g, const A* f, int64_t rows, int64_t n, ShortSteps<A> steps, A inv_tau, A* t) {
  A product[kRowTile], back[kRowTile], pg[kRowTile], u[kRowTile], t_top[kRowTile];
  for (int64_t r = 0; r < rows; ++r) t_top[r] = t[int64_t(steps.top[r]) * rows + r];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = i * rows + r;
      const A p = f[at] * steps.scale[r];
      product[at] = (steps.top[r] == A(i) ? steps.p_top[r] : p) * g[at];
      back[at] = handed_back(p, t[at]);
    }
  }
  short_sums(product, rows, n, pg);
  short_sums(back, rows, n, u);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = i * rows + r;
      const SubsetPull<A> pull{steps.of(r), {pg[r], u[r]}, t_top[r], inv_tau};
      const A top = pull.top(g[at]), other = pull.other(f[at], g[at], t[at]);
      t[at] = steps.top[r] == A(i) ? top : other;
    }
  }
}

// The backward of a block: `keys`, transposed, are those of the draw.
template <class T, class A = arithmetic_t<T>>
void short_subsets_backward(const A* keys, const T* grad, int64_t rows, int64_t n, int64_t k, A inv_tau, T* out) {
  const SubsetPlan plan(k);
  const int64_t size = rows * n;
  const auto kept = scratch<A>(plan.segments * size), f = scratch<A>(plan.length * size);
  const auto numbers = scratch<A>(k * ShortSteps<A>::kNumbers * rows);
  const auto step = [&](int64_t j) { return ShortSteps<A>(numbers.get() + j * ShortSteps<A>::kNumbers * rows, rows); };
  A a[kRowTile], t[kRowTile], g[kRowTile];
  std::copy(keys, keys + size, a);
  for (int64_t j = 0; j < k; ++j) {
    if (j % plan.length == 0) std::copy(a, a + size, kept.get() + j / plan.length * size);
    short_steps(a, rows, n, inv_tau, step(j), f.get());
    if (j < k - 1) short_next(a, f.get(), rows, n, step(j));
  }
  transposed_in(grad, rows, n, g);
  std::fill(t, t + size, A(0));
  for (int64_t segment = plan.segments - 1; segment >= 0; --segment) {
    const int64_t first = segment * plan.length, last = std::min(k, first + plan.length) - 1;
    A* at = kept.get() + segment * size;
    for (int64_t j = first; j <= last; ++j) {
      A* weights = f.get() + (j - first) * size;
      short_weights(at, rows, n, step(j), inv_tau, weights);
      if (j < last) short_next(at, weights, rows, n, step(j));
    }
    for (int64_t j = last; j >= first; --j) {
      short_pull(g, f.get() + (j - first) * size, rows, n, step(j), inv_tau, t);
    }
  }
  transposed_out(t, rows, n, out);
}

}  // namespace ste_ops
