// The gradients of a categorical draw D. With q = softmax(logits / tau) they are products of g with
//   straight_through   J(q) / tau                          Bengio et al., arXiv:1308.3432
//   gumbel             the same, the logits with the draw's noise added     Jang et al., arXiv:1611.01144
//   reinmax            2 J((q + D) / 2) - J(softmax(logits)) / 2            Liu et al., arXiv:2304.08612, algorithm 2
// where J(p) g = p (g - <p, g>). All three matrices are symmetric.
#pragma once

#include "core/sampling/gumbel.h"
#include "core/sampling/logit_rows.h"

namespace ste_ops {

enum Estimator : int64_t { kStraightThrough, kGumbel, kReinMax };

// Sums over a row: of e^z and of e^z g, and both again at tau = 1.
template <class A>
struct SoftmaxSums {
  A z, zg, one, one_g;
  STE_HD friend SoftmaxSums operator+(const SoftmaxSums& a, const SoftmaxSums& b) {
    return {a.z + b.z, a.zg + b.zg, a.one + b.one, a.one_g + b.one_g};
  }
};

// What the elements of a row need to know of it.
template <class A>
struct RowGradient {
  A inverse, mean, one_inverse, one_mean, drawn, inv_tau;
  int64_t index;
  bool reinmax;

  RowGradient() = default;
  // `drawn` is g at the index.
  STE_HD RowGradient(const SoftmaxSums<A>& sums, A drawn, int64_t index, A tau_inverse, bool reinmax)
      : inverse(A(1) / sums.z),
        mean(sums.zg / sums.z),
        one_inverse(A(1) / sums.one),
        one_mean(sums.one_g / sums.one),
        drawn(drawn),
        inv_tau(tau_inverse),
        index(index),
        reinmax(reinmax) {}

  // `e` is e^z, `one` the same at tau = 1.
  STE_HD A softmax(A e, A g) const { return e * inverse * (g - mean) * inv_tau; }
  STE_HD A second_order(A e, A one, A g, int64_t i) const {
    A hit = i == index ? A(1) : A(0);
    return (e * inverse + hit) * (g - A(0.5) * (mean + drawn)) - A(0.5) * (one * one_inverse) * (g - one_mean);
  }
};

}  // namespace ste_ops
