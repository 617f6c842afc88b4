// The gradients of categorical draws (core/sampling/categorical.h), a block of rows at a time.
#pragma once

#include "cpu/sampling/short_rows.h"

namespace ste_ops {

// What one block knows of its rows, and what it works in.
template <class T>
struct Block {
  using A = arithmetic_t<T>;
  const T* grad;
  const A* keys;
  A inv_tau;
  bool reinmax;
};

// e^((key - center) / tau), and at tau = 1 with no center where the estimator needs that.
template <class T, class A = arithmetic_t<T>>
STE_OPS_INLINE void exponentials(const Block<T>& block, int64_t count, int64_t n, const A* center, A* e, A* one) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < n; ++i) e[r * n + i] = (block.keys[r * n + i] - center[r]) * block.inv_tau;
  }
  for (int64_t i = 0; i < count * n; ++i) e[i] = portable_exp_bounded(e[i]);
  if (block.reinmax) {
    for (int64_t i = 0; i < count * n; ++i) one[i] = portable_exp_bounded(block.keys[i]);
  }
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void softmax_sums(
    const Block<T>& block, int64_t count, int64_t n, const A* center, SoftmaxSums<A>* sums) {
  A e[kRowTile], one[kRowTile], product[kRowTile];
  exponentials(block, count, n, center, e, one);
  for (int64_t i = 0; i < count * n; ++i) product[i] = e[i] * load(block.grad[i]);
  for (int64_t r = 0; r < count; ++r) {
    sums[r] = {tile_sum(e + r * n, n), tile_sum(product + r * n, n), A(1), A(0)};
  }
  if (!block.reinmax) return;
  for (int64_t i = 0; i < count * n; ++i) product[i] = one[i] * load(block.grad[i]);
  for (int64_t r = 0; r < count; ++r) {
    sums[r].one = tile_sum(one + r * n, n);
    sums[r].one_g = tile_sum(product + r * n, n);
  }
}

// `first` is the place that a tile's first element has in its row.
template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void softmax_gradients(
    const Block<T>& block, int64_t count, int64_t n, const A* center, const RowGradient<A>* rows, int64_t first,
    T* out) {
  A e[kRowTile], one[kRowTile];
  exponentials(block, count, n, center, e, one);
  for (int64_t r = 0; r < count; ++r) {
    const RowGradient<A> row = rows[r];
    const A *er = e + r * n, *oner = one + r * n;
    const T* g = block.grad + r * n;
    T* result = out + r * n;
    if (block.reinmax) {
      for (int64_t i = 0; i < n; ++i) result[i] = store<T>(row.second_order(er[i], oner[i], load(g[i]), first + i));
    } else {
      for (int64_t i = 0; i < n; ++i) result[i] = store<T>(row.softmax(er[i], load(g[i])));
    }
  }
}

// The RowGradient of each row of a block: at first the sums of the row, then what `finish` makes of them.
template <class A>
struct ShortGradients {
  const A* drawn;
  A inv_tau;
  A inverse[kRowTile], mean[kRowTile], one_inverse[kRowTile], one_mean[kRowTile];

  STE_OPS_INLINE void finish(int64_t r, bool reinmax) {
    const SoftmaxSums<A> sums{inverse[r], mean[r], reinmax ? one_inverse[r] : A(1), reinmax ? one_mean[r] : A(0)};
    const RowGradient<A> row(sums, drawn[r], -1, inv_tau, reinmax);
    inverse[r] = row.inverse;
    mean[r] = row.mean;
    one_inverse[r] = row.one_inverse;
    one_mean[r] = row.one_mean;
  }
  STE_OPS_INLINE RowGradient<A> of(int64_t r, int64_t index) const {
    RowGradient<A> row;
    row.inverse = inverse[r];
    row.mean = mean[r];
    row.one_inverse = one_inverse[r];
    row.one_mean = one_mean[r];
    row.drawn = drawn[r];
    row.inv_tau = inv_tau;
    row.index = index;
    return row;
  }
};

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void short_gradients(
    const T* grad, const A* keys, int64_t rows, int64_t n, Estimator estimator, A inv_tau, const int64_t* index,
    T* out) {
  const bool reinmax = estimator == kReinMax;
  A g[kRowTile], e[kRowTile], one[kRowTile], product[kRowTile];
  transposed_in(grad, rows, n, g);
  A center[kRowTile], drawn[kRowTile];
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = estimator == kStraightThrough ? 0 : index[r];
    const bool inside = at >= 0 && at < n;
    center[r] = estimator != kGumbel ? A(0) : inside ? keys[at * rows + r] : quiet_nan<A>();
    drawn[r] = inside ? g[at * rows + r] : quiet_nan<A>();
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      e[i * rows + r] = portable_exp_bounded((keys[i * rows + r] - center[r]) * inv_tau);
    }
  }
  ShortGradients<A> of_rows;
  of_rows.drawn = drawn;
  of_rows.inv_tau = inv_tau;
  short_sums(e, rows, n, of_rows.inverse);
  for (int64_t i = 0; i < rows * n; ++i) product[i] = e[i] * g[i];
  short_sums(product, rows, n, of_rows.mean);
  if (reinmax) {
    for (int64_t i = 0; i < rows * n; ++i) one[i] = portable_exp_bounded(keys[i]);
    short_sums(one, rows, n, of_rows.one_inverse);
    for (int64_t i = 0; i < rows * n; ++i) product[i] = one[i] * g[i];
    short_sums(product, rows, n, of_rows.one_mean);
  }
  for (int64_t r = 0; r < rows; ++r) of_rows.finish(r, reinmax);
  for (int64_t i = 0; i < n; ++i) {
    const A *ei = e + i * rows, *onei = one + i * rows, *gi = g + i * rows;
    A* result = product + i * rows;
    if (reinmax) {
      for (int64_t r = 0; r < rows; ++r) result[r] = of_rows.of(r, index[r]).second_order(ei[r], onei[r], gi[r], i);
    } else {
      for (int64_t r = 0; r < rows; ++r) result[r] = of_rows.of(r, -1).softmax(ei[r], gi[r]);
    }
  }
  transposed_out(product, rows, n, out);
}

}  // namespace ste_ops
