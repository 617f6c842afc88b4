#include "cpu/sampling/short_rows.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Of each row the first of its largest keys.
template <class A>
STE_OPS_CLONES void best_keys(const A* keys, int64_t count, int64_t n, Best<A>* best) {
  for (int64_t r = 0; r < count; ++r) {
    const A* row = keys + r * n;
    A largest = largest_of(row, n);
    int64_t i = 0;
    while (i < n - 1 && row[i] != largest) ++i;
    best[r] = {i, largest};
  }
}

template <class A>
Best<A> best_of_long(const A* keys, int64_t n) {
  std::vector<Best<A>> tiles(size_t(tiles_of(n)));
  each_tile(n, [&](int64_t t, int64_t begin, int64_t end) {
    best_keys(keys + begin, 1, end - begin, &tiles[t]);
    tiles[t].index += begin;
  });
  Best<A> best = Best<A>::none();
  for (const Best<A>& tile : tiles) best = Better()(best, tile);
  return best;
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void draw_short_rows(const A* keys, int64_t rows, int64_t n, int64_t* index, T* out) {
  const T one = store<T>(A(1));
  A largest[kRowTile], at[kRowTile];
  short_largest(keys, rows, n, largest);
  short_places(keys, largest, rows, n, at);
  memset(out, 0, size_t(rows * n) * sizeof(T));
  for (int64_t r = 0; r < rows; ++r) {
    index[r] = int64_t(at[r]);
    out[r * n + index[r]] = one;
  }
}

// Of `rows` short enough for one block, or of one longer row.
template <class T, class A = arithmetic_t<T>>
void draw_rows(const A* keys, int64_t rows, int64_t n, int64_t* index, T* out) {
  Best<A> best[kRowTile];
  if (n > kRowTile) {
    best[0] = best_of_long(keys, n);
    each_tile(n, [&](int64_t, int64_t begin, int64_t end) { memset(out + begin, 0, size_t(end - begin) * sizeof(T)); });
  } else {
    best_keys(keys, rows, n, best);
    memset(out, 0, size_t(rows * n) * sizeof(T));
  }
  for (int64_t r = 0; r < rows; ++r) {
    index[r] = best[r].index;
    out[r * n + best[r].index] = store<T>(A(1));
  }
}

std::tuple<Tensor, Tensor> categorical_cpu(Tensor logits, Tensor seed) {
  return categorical(
      logits, seed,
      [](auto type, const Tensor&, const RowShape& shape, const auto* x, const uint64_t* seeds, auto* out,
         int64_t* index) {
        using A = arithmetic_t<typename decltype(type)::type>;
        const int64_t n = shape.n;
        std::atomic<int64_t> invalid(shape.rows);
        const auto inspect = [&](int64_t row, int64_t count, const A* largest) {
          for (int64_t r = 0; r < count; ++r) {
            if (!is_drawable(largest[r])) lower(invalid, row + r);
          }
        };
        if (has_short_rows(shape)) {
          each_short_rows(shape, x, seeds, true, [&](int64_t row, int64_t count, const A* largest, const A* keys) {
            inspect(row, count, largest);
            draw_short_rows(keys, count, n, index + row, out + row * n);
          });
        } else {
          each_rows(shape, x, seeds, true, [&](int64_t row, int64_t count, const A* largest, const A* keys) {
            inspect(row, count, largest);
            draw_rows(keys, count, n, index + row, out + row * n);
          });
        }
        if (invalid < shape.rows) refuse_row("categorical_ste", x, n, invalid.load());
      });
}

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

// `first` is the place in its row of a tile's first element.
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

// The RowGradient of each row of a block: first its sums, then what they finish to.
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

Tensor categorical_backward_cpu(Tensor grad, Tensor logits, Tensor seed, Tensor index, int64_t estimator, double tau) {
  return categorical_backward(
      grad, logits, seed, index, estimator, tau,
      [](auto type, const Tensor&, const RowShape& shape, Estimator estimator, auto inv_tau, const auto* grad,
         const auto* x, const uint64_t* seeds, const int64_t* index, auto* out) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t n = shape.n;
        const bool noisy = estimator == kGumbel, reinmax = estimator == kReinMax;
        if (has_short_rows(shape)) {
          return each_short_rows(shape, x, seeds, noisy, [&](int64_t row, int64_t count, const A*, const A* keys) {
            short_gradients(grad + row * n, keys, count, n, estimator, inv_tau, index + row, out + row * n);
          });
        }
        each_rows(shape, x, seeds, noisy, [&](int64_t row, int64_t count, const A*, const A* keys) {
          const T* g = grad + row * n;
          A center[kRowTile], drawn[kRowTile];
          for (int64_t r = 0; r < count; ++r) {
            const int64_t at = estimator == kStraightThrough ? 0 : index[row + r];
            const bool inside = at >= 0 && at < n;
            center[r] = !noisy ? A(0) : inside ? keys[r * n + at] : quiet_nan<A>();
            drawn[r] = inside ? load(g[r * n + at]) : quiet_nan<A>();
          }
          const auto of_row = [&](const SoftmaxSums<A>& sums, int64_t r) {
            return RowGradient<A>(sums, drawn[r], reinmax ? index[row + r] : -1, inv_tau, reinmax);
          };
          if (n <= kRowTile) {
            const Block<T> block{g, keys, inv_tau, reinmax};
            SoftmaxSums<A> sums[kRowTile];
            softmax_sums(block, count, n, center, sums);
            std::vector<RowGradient<A>> rows;
            rows.reserve(size_t(count));
            for (int64_t r = 0; r < count; ++r) rows.push_back(of_row(sums[r], r));
            return softmax_gradients(block, count, n, center, rows.data(), 0, out + row * n);
          }
          std::vector<SoftmaxSums<A>> tiles(size_t(tiles_of(n)));
          each_tile(n, [&](int64_t t, int64_t begin, int64_t end) {
            softmax_sums(Block<T>{g + begin, keys + begin, inv_tau, reinmax}, 1, end - begin, center, &tiles[t]);
          });
          SoftmaxSums<A> total = sum_of_tiles(tiles.data(), tiles_of(n), [](const auto& sums) { return sums; });
          if (!reinmax) total.one = A(1);
          const RowGradient<A> gradient = of_row(total, 0);
          each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
            softmax_gradients(
                Block<T>{g + begin, keys + begin, inv_tau, reinmax}, 1, end - begin, center, &gradient, begin,
                out + row * n + begin);
          });
        });
      });
}

template <class A>
STE_OPS_CLONES void noise_stretch(uint64_t seed, uint64_t place, int64_t count, A* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = A(0);
  add_noise(seed, place, count, out);
}

Tensor gumbel_noise_cpu(Tensor logits, Tensor seed) {
  return gumbel_noise(
      logits, seed, [](auto type, const Tensor&, const RowShape& shape, const uint64_t* seeds, auto* out) {
        using A = typename decltype(type)::type;
        const int64_t numel = shape.per_seed * shape.n;
        for (int64_t s = 0; s < shape.rows / shape.per_seed; ++s) {
          parallel_aligned(numel, kDraws, [&](int64_t begin, int64_t end) {
            noise_stretch<A>(seeds[s], uint64_t(begin), end - begin, out + s * numel + begin);
          });
        }
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("categorical", TORCH_BOX(&categorical_cpu));
  m.impl("categorical_backward", TORCH_BOX(&categorical_backward_cpu));
  m.impl("gumbel_noise", TORCH_BOX(&gumbel_noise_cpu));
}

}  // namespace ste_ops
