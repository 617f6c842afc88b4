#include "rows.h"

#include "../../library.h"

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

std::tuple<Tensor, Tensor> categorical_cpu(Tensor logits, Tensor seed) {
  return categorical(logits, seed,
                     [](auto type, const Tensor&, const RowShape& shape, const auto* x, const uint64_t* seeds,
                        auto* out, int64_t* index) {
                       using T = typename decltype(type)::type;
                       using A = arithmetic_t<T>;
                       const int64_t n = shape.n;
                       const T one = store<T>(A(1));
                       std::atomic<int64_t> invalid(shape.rows);
                       each_rows(shape, x, seeds, true,
                                 [&](int64_t row, int64_t count, const A* largest, const A* keys) {
                                   Best<A> best[kRowTile];
                                   if (n > kRowTile) {
                                     best[0] = best_of_long(keys, n);
                                     each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
                                       memset(out + row * n + begin, 0, size_t(end - begin) * sizeof(T));
                                     });
                                   } else {
                                     best_keys(keys, count, n, best);
                                     memset(out + row * n, 0, size_t(count * n) * sizeof(T));
                                   }
                                   for (int64_t r = 0; r < count; ++r) {
                                     if (!is_drawable(largest[r])) lower(invalid, row + r);
                                     index[row + r] = best[r].index;
                                     out[(row + r) * n + best[r].index] = one;
                                   }
                                 });
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
STE_OPS_CLONES void softmax_sums(const Block<T>& block, int64_t count, int64_t n, const A* center,
                                 SoftmaxSums<A>* sums) {
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
STE_OPS_CLONES void softmax_gradients(const Block<T>& block, int64_t count, int64_t n, const A* center,
                                      const RowGradient<A>* rows, int64_t first, T* out) {
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

Tensor categorical_backward_cpu(Tensor grad, Tensor logits, Tensor seed, Tensor index, int64_t estimator, double tau) {
  return categorical_backward(
      grad, logits, seed, index, estimator, tau,
      [](auto type, const Tensor&, const RowShape& shape, Estimator estimator, auto inv_tau, const auto* grad,
         const auto* x, const uint64_t* seeds, const int64_t* index, auto* out) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t n = shape.n;
        const bool noisy = estimator == kGumbel, reinmax = estimator == kReinMax;
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
            softmax_gradients(Block<T>{g + begin, keys + begin, inv_tau, reinmax}, 1, end - begin, center, &gradient,
                              begin, out + row * n + begin);
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
  return gumbel_noise(logits, seed,
                      [](auto type, const Tensor&, const RowShape& shape, const uint64_t* seeds, auto* out) {
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
