// The relaxed choice of k out of n (Xie and Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations",
// 2019):
//   p_j = softmax(a_j / tau),   a_{j+1} = a_j + log(1 - p_j),   the relaxed k-hot vector is p_1 + ... + p_k.
// 1 - p loses its digits where p is near 1, which only the largest can be: for it, 1 - p is the sum of the others.
#pragma once

#include "core/sampling/gumbel.h"
#include "core/sampling/logit_rows.h"

namespace ste_ops {

// The largest (the first of equal ones) and the largest of the others.
template <class A>
struct TopTwo {
  int64_t index;
  A first, second;
  STE_HD static TopTwo none() { return {INT64_MAX, -Floating<A>::infinity, -Floating<A>::infinity}; }
};

struct MergeTops {
  template <class A>
  STE_HD TopTwo<A> operator()(TopTwo<A> a, TopTwo<A> b) const {
    bool left = (a.first > b.first) | ((a.first == b.first) & (a.index < b.index));
    TopTwo<A> winner = left ? a : b, loser = left ? b : a;
    winner.second = winner.second > loser.first ? winner.second : loser.first;
    return winner;
  }
};

// One softmax. With f_i = e^((a_i - center) / tau) for all but the largest: p_i = f_i * scale and f_i * share is
// p_i / (1 - p of the largest).
template <class A>
struct SubsetSoftmax {
  int64_t top;
  A center, scale, share, p_top, log_left;

  STE_HD static A center_of(const TopTwo<A>& tops) { return tops.second >= -kHuge<A> ? tops.second : tops.first; }

  SubsetSoftmax() = default;
  STE_HD explicit SubsetSoftmax(const TopTwo<A>& tops) : top(tops.index), center(center_of(tops)) {}

  // `rest` is the sum of all f_i.
  STE_HD void finish(const TopTwo<A>& tops, A rest, A inv_tau) {
    A gap = (center - tops.first) * inv_tau;
    A beside = portable_exp_bounded(gap);
    A total = A(1) + beside * rest;
    p_top = A(1) / total;
    scale = beside * p_top;
    share = rest > A(0) ? A(1) / rest : A(0);
    log_left = rest > A(0) ? gap + portable_log(rest) - portable_log(total) : -Floating<A>::infinity;
  }

  // f of any but the largest.
  STE_HD A weight(A a, A inv_tau) const { return portable_exp_bounded((a - center) * inv_tau); }
  STE_HD A next(A a, A f) const {
    A p = f * scale;
    return a + log_one_minus(p, A(1) - p);
  }
};

// The sums that the backward of one softmax needs: of p g, and of what the others hand back, u = p t / (1 - p).
template <class A>
struct SubsetSums {
  A pg, u;
  STE_HD friend SubsetSums operator+(const SubsetSums& a, const SubsetSums& b) { return {a.pg + b.pg, a.u + b.u}; }
};

template <class A>
STE_HD A handed_back(A p, A t) {
  return p * t / (A(1) - p);
}

// From t, the gradient of a_{j+1}, to that of a_j.
template <class A>
struct SubsetPull {
  SubsetSoftmax<A> softmax;
  SubsetSums<A> sums;
  A t_top, inv_tau;

  STE_HD A other(A f, A g, A t) const {
    A p = f * softmax.scale;
    A direct = p * ((g - sums.pg) + (sums.u - handed_back(p, t)));
    return t - inv_tau * (p * t) + inv_tau * (direct + f * softmax.share * (softmax.p_top * t_top));
  }
  STE_HD A top(A g) const {
    return t_top - inv_tau * (softmax.p_top * t_top) + inv_tau * (softmax.p_top * ((g - sums.pg) + sums.u));
  }
};

// The k softmaxes in segments of `length`. The logits are kept at the start of every segment, and the softmaxes of a
// segment are computed anew: memory grows as the square root of k, and the time doubles.
struct SubsetPlan {
  int64_t k, length = 1, segments;
  explicit SubsetPlan(int64_t k) : k(k) {
    while (length * length < k) ++length;
    segments = (k + length - 1) / length;
  }
};

}  // namespace ste_ops
