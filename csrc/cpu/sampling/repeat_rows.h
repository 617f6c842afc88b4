// Draws with replacement from rows, each by its sums or from a table.
#pragma once

#include <memory>

#include "cpu/sampling/alias.h"
#include "cpu/sampling/alias_draws.h"
#include "cpu/sampling/inverse_cdf.h"

namespace ste_ops {
namespace {

template <class T>
struct RepeatRows {
  const bits_t<T>* weights;
  uint64_t seed;
  int64_t n, num_samples;
  int64_t *out, *states;

  // Draws from rows first .. last - 1; a state says what is wrong with one.
  void operator()(int64_t first, int64_t last) const {
    if (few_draws(n, num_samples)) {
      RowDrawer<T> drawer(n, num_samples);
      for (int64_t row = first; row < last; ++row) {
        states[row] = drawer.draw(weights + row * n, seed, uint64_t(row), out + row * num_samples);
      }
      return;
    }
    RowBuilder<T> builder(n);
    const std::unique_ptr<uint64_t[]> table(new uint64_t[size_t(n)]);
    for (int64_t row = first; row < last; ++row) {
      states[row] = builder.build(weights + row * n, table.get());
      const DrawFromTable draw{table.get(), states[row], seed, uint64_t(row), n, 0, 1, out + row * num_samples};
      share_draws(num_samples, draw);
    }
  }

  double nanoseconds() const {
    return few_draws(n, num_samples) ? summed_nanoseconds(n, num_samples)
                                     : kBuildNanoseconds * double(n) + kDrawNanoseconds * double(num_samples);
  }
};

}  // namespace
}  // namespace ste_ops
