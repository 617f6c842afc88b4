// What both backends of the Bernoulli draw do around their loops.
#pragma once

#include "core/sampling/bernoulli.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// `draw(Type<T>, like, p, seed, rows, numel, out)` fills out, in p's memory order; each row of numel elements has a
// seed. Both are bits_t<T>.
template <class Draw>
Tensor bernoulli(const Tensor& p, const Tensor& seed, Draw&& draw) {
  constexpr const char* op = "bernoulli_ste";
  const int64_t rows = seed_rows(op, seed, p, "p");
  Tensor out = new_like(p);
  if (p.numel() == 0) return out;
  Tensor dense = in_layout_of(out, p);
  dispatch_floating(op, "p", p, [&](auto type) {
    using T = typename decltype(type)::type;
    draw(
        type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), rows, p.numel() / rows,
        static_cast<bits_t<T>*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ste_ops
