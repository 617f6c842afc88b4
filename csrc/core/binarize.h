// The steps of the binarize family: what the forward does to one element. Their gradients are the surrogates.
#pragma once

#include "macros.h"

namespace ste_ops {

// 1 where x > 0, so 0 at both zeros and at NaN.
struct Heaviside {
  template <class A>
  STE_HD A operator()(A x) const {
    return x > A(0) ? A(1) : A(0);
  }
};

// +1 where x >= 0, so at both zeros too, and -1 elsewhere, NaN included. Never 0.
struct Sign {
  template <class A>
  STE_HD A operator()(A x) const {
    return x >= A(0) ? A(1) : A(-1);
  }
};

}  // namespace ste_ops
