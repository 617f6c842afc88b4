// The relaxed choice of k for a block of short rows (short_rows.h): what one row of subset.cpp does, for all of them at
// once.
#pragma once

#include <algorithm>

#include "core/sampling/subset.h"
#include "cpu/sampling/short_rows.h"

namespace ste_ops {

// Counts which of two elements of each row comes before the other.
template <class A>
STE_OPS_INLINE void count_before(const A* early, const A* late, int64_t rows, A* before_early, A* before_late) {
#pragma GCC ivdep
  for (int64_t r = 0; r < rows; ++r) {
    const A first = early[r] >= late[r] ? A(1) : A(0);
    before_early[r] += A(1) - first;
    before_late[r] += first;
  }
}

// Writes 1 at the k largest keys of each row (at the first of equal ones): at those with fewer than k before them.
// `finite` becomes the number of finite keys of each row.
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

// The SubsetSoftmax of every row of a block, in memory of kNumbers times as many rows; `top` is a number as in
// short_places.
template <class A>
struct ShortSoftmaxes {
  static constexpr int kNumbers = 6;
  A *top, *center, *scale, *share, *p_top, *log_left;

  ShortSoftmaxes(A* memory, int64_t rows)
      : top(memory),
        center(memory + rows),
        scale(memory + 2 * rows),
        share(memory + 3 * rows),
        p_top(memory + 4 * rows),
        log_left(memory + 5 * rows) {}

  STE_OPS_INLINE SubsetSoftmax<A> of(int64_t r) const {
    SubsetSoftmax<A> softmax;
    softmax.top = 0;
    softmax.center = center[r];
    softmax.scale = scale[r];
    softmax.share = share[r];
    softmax.p_top = p_top[r];
    softmax.log_left = log_left[r];
    return softmax;
  }
};

// f of all elements, 0 at the top of each row.
template <class A>
STE_OPS_CLONES void short_weights(const A* a, int64_t rows, int64_t n, ShortSoftmaxes<A> softmaxes, A inv_tau, A* f) {
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const A weight = softmaxes.of(r).weight(a[i * rows + r], inv_tau);
      f[i * rows + r] = softmaxes.top[r] == A(i) ? A(0) : weight;
    }
  }
}

template <class A>
STE_OPS_CLONES void short_softmaxes(const A* a, int64_t rows, int64_t n, A inv_tau, ShortSoftmaxes<A> softmaxes, A* f) {
  constexpr A kNone = -Floating<A>::infinity;
  A first[kRowTile], second[kRowTile], rest[kRowTile];
  short_largest(a, rows, n, first);
  short_places(a, first, rows, n, softmaxes.top);
  for (int64_t r = 0; r < rows; ++r) second[r] = kNone;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const A larger = MaxOrNaN()(second[r], a[i * rows + r]);
      second[r] = softmaxes.top[r] == A(i) ? second[r] : larger;
    }
  }
#pragma GCC ivdep
  for (int64_t r = 0; r < rows; ++r) {
    second[r] = second[r] > kNone ? second[r] : kNone;  // not NaN: as MergeTops
    softmaxes.center[r] = SubsetSoftmax<A>::center_of({0, first[r], second[r]});
  }
  short_weights(a, rows, n, softmaxes, inv_tau, f);
  short_sums(f, rows, n, rest);
#pragma GCC ivdep
  for (int64_t r = 0; r < rows; ++r) {
    SubsetSoftmax<A> softmax;
    softmax.center = softmaxes.center[r];
    softmax.finish({0, first[r], second[r]}, rest[r], inv_tau);
    softmaxes.scale[r] = softmax.scale;
    softmaxes.share[r] = softmax.share;
    softmaxes.p_top[r] = softmax.p_top;
    softmaxes.log_left[r] = softmax.log_left;
  }
}

template <class A>
STE_OPS_CLONES void short_next(A* a, const A* f, int64_t rows, int64_t n, ShortSoftmaxes<A> softmaxes) {
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const A at = a[i * rows + r], next = softmaxes.of(r).next(at, f[i * rows + r]);
      a[i * rows + r] = softmaxes.top[r] == A(i) ? at + softmaxes.log_left[r] : next;
    }
  }
}

template <class A>
STE_OPS_CLONES void short_pull(
    const A* g, const A* f, int64_t rows, int64_t n, ShortSoftmaxes<A> softmaxes, A inv_tau, A* t) {
  A product[kRowTile], back[kRowTile], pg[kRowTile], u[kRowTile], t_top[kRowTile];
  for (int64_t r = 0; r < rows; ++r) t_top[r] = t[int64_t(softmaxes.top[r]) * rows + r];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = i * rows + r;
      const A p = f[at] * softmaxes.scale[r];
      product[at] = (softmaxes.top[r] == A(i) ? softmaxes.p_top[r] : p) * g[at];
      back[at] = handed_back(p, t[at]);
    }
  }
  short_sums(product, rows, n, pg);
  short_sums(back, rows, n, u);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = i * rows + r;
      const SubsetPull<A> pull{softmaxes.of(r), {pg[r], u[r]}, t_top[r], inv_tau};
      const A top = pull.top(g[at]), other = pull.other(f[at], g[at], t[at]);
      t[at] = softmaxes.top[r] == A(i) ? top : other;
    }
  }
}

// The backward of a block: `keys`, transposed, are those of the draw.
template <class T, class A = arithmetic_t<T>>
void short_subsets_backward(const A* keys, const T* grad, int64_t rows, int64_t n, int64_t k, A inv_tau, T* out) {
  const SubsetPlan plan(k);
  const int64_t size = rows * n;
  const auto kept = scratch<A>(plan.segments * size), f = scratch<A>(plan.length * size);
  const auto numbers = scratch<A>(k * ShortSoftmaxes<A>::kNumbers * rows);
  const auto softmax = [&](int64_t j) {
    return ShortSoftmaxes<A>(numbers.get() + j * ShortSoftmaxes<A>::kNumbers * rows, rows);
  };
  A a[kRowTile], t[kRowTile], g[kRowTile];
  std::copy(keys, keys + size, a);
  for (int64_t j = 0; j < k; ++j) {
    if (j % plan.length == 0) std::copy(a, a + size, kept.get() + j / plan.length * size);
    short_softmaxes(a, rows, n, inv_tau, softmax(j), f.get());
    if (j < k - 1) short_next(a, f.get(), rows, n, softmax(j));
  }
  transposed_in(grad, rows, n, g);
  std::fill(t, t + size, A(0));
  for (int64_t segment = plan.segments - 1; segment >= 0; --segment) {
    const int64_t first = segment * plan.length, last = std::min(k, first + plan.length) - 1;
    A* at = kept.get() + segment * size;
    for (int64_t j = first; j <= last; ++j) {
      A* weights = f.get() + (j - first) * size;
      short_weights(at, rows, n, softmax(j), inv_tau, weights);
      if (j < last) short_next(at, weights, rows, n, softmax(j));
    }
    for (int64_t j = last; j >= first; --j) {
      short_pull(g, f.get() + (j - first) * size, rows, n, softmax(j), inv_tau, t);
    }
  }
  transposed_out(t, rows, n, out);
}

}  // namespace ste_ops
