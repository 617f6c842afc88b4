// Gumbel noise: the largest of logit + noise is a draw from softmax(logits), the k largest are draws without
// replacement (Gumbel-max; Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019).
#pragma once

#include <cstdint>

#include "core/math.h"
#include "core/sampling/philox.h"

namespace ste_ops {

// ln(left), where left is 1 - v rounded and positive: to its last places also where v is small.
template <class A>
STE_HD A log_one_minus(A v, A left) {
  using F = Floating<A>;
  Split<A> split(left);
  // Above 3/4 the exponent is 0, and left - 1 is what rounding left of -v.
  A f = v < A(0.25) ? -v : split.m - A(1);
  A s = f / (A(2) + f);
  A z = s * s;
  A tail = A(2) * z * atanh_tail(z);
  return split.n * F::ln2_high + (f - (s * (f - tail) - split.n * F::ln2_low));
}

// -ln(-ln(1 - v)), where v is 62 of the random bits and a half, over 2^62: never 0 nor 1, so that the noise stays
// within -3.8 and 43.7. Integers of 31 bits, because every processor converts those lane by lane.
template <class A>
STE_HD A gumbel(uint64_t random) {
  int32_t high = int32_t(random >> 33), low = int32_t(uint32_t(random) >> 1);
  A v = A(high) * A(0x1p-31) + (A(low) * A(0x1p-62) + A(0x1p-63));
  A left = A(high ^ 0x7fffffff) * A(0x1p-31) + (A(low ^ 0x7fffffff) * A(0x1p-62) + A(0x1p-63));
  return -portable_log(-log_one_minus(v, left));
}

// The random bits of the element at `place`: a draw of Philox is enough for two neighbours.
STE_HD uint64_t bits_at(uint64_t seed, uint64_t place) {
  Random128 random = philox_draw(seed, 0, place >> 1);
  return place & 1 ? high_bits(random) : low_bits(random);
}

template <class A>
STE_HD A gumbel_at(uint64_t seed, uint64_t place) {
  return gumbel<A>(bits_at(seed, place));
}

}  // namespace ste_ops
