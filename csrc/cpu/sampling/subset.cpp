#include "ops/sampling/subset.h"

#include "cpu/sampling/short_subsets.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Writes 1 at the k largest keys, of equal ones the first; `copy` is n numbers to work in.
template <class T, class A = arithmetic_t<T>>
void choose(const A* keys, int64_t n, int64_t k, A* copy, T* out) {
  std::copy(keys, keys + n, copy);
  std::nth_element(copy, copy + (k - 1), copy + n, [](A a, A b) { return a > b; });
  const A least = copy[k - 1];
  const int64_t above = std::count_if(copy, copy + (k - 1), [&](A key) { return key > least; });
  int64_t equal = k - above;
  const T zero = store<T>(A(0)), one = store<T>(A(1));
  for (int64_t i = 0; i < n; ++i) {
    const bool tied = keys[i] == least && equal > 0;
    equal -= tied;
    out[i] = keys[i] > least || tied ? one : zero;
  }
}

Tensor subset_cpu(Tensor logits, Tensor seed, int64_t k) {
  return subset(
      logits, seed, k,
      [](auto type, const Tensor&, const RowShape& shape, int64_t k, const auto* x, const uint64_t* seeds, auto* out) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t n = shape.n;
        std::atomic<int64_t> invalid(shape.rows), few(shape.rows);
        // Whether row number `row` has k to choose from.
        const auto inspect = [&](int64_t row, A largest, int64_t finite) {
          if (!is_drawable(largest)) {
            lower(invalid, row);
          } else if (finite < k) {
            lower(few, row);
          }
          return is_drawable(largest) && finite >= k;
        };
        if (has_short_rows(shape)) {
          each_short_rows(shape, x, seeds, true, [&](int64_t row, int64_t count, const A* largest, const A* keys) {
            A finite[kRowTile];
            choose_in_short_rows(keys, count, n, k, finite, out + row * n);
            for (int64_t r = 0; r < count; ++r) inspect(row + r, largest[r], int64_t(finite[r]));
          });
        } else {
          each_rows(shape, x, seeds, true, [&](int64_t row, int64_t count, const A* largest, const A* keys) {
            auto copy = scratch<A>(n);
            for (int64_t r = 0; r < count; ++r) {
              const A* of_row = keys + r * n;
              const auto finite = std::count_if(of_row, of_row + n, [](A key) { return key >= -kHuge<A>; });
              if (inspect(row + r, largest[r], finite)) choose<T>(of_row, n, k, copy.get(), out + (row + r) * n);
            }
          });
        }
        if (invalid < shape.rows) refuse_row("subset_ste", x, n, invalid.load());
        if (few < shape.rows) {
          const int64_t row = few;
          const auto above =
              std::count_if(x + row * n, x + (row + 1) * n, [](T value) { return load(value) >= -kHuge<A>; });
          STD_TORCH_CHECK(
              false, "subset_ste: k must be at most ", above, ", the number of categories above -inf in row ", row,
              ", got ", k);
        }
      });
}

template <class A>
STE_OPS_CLONES TopTwo<A> tile_tops(const A* a, int64_t begin, int64_t n) {
  const A first = largest_of(a, n);
  int64_t at = 0;
  while (at < n - 1 && a[at] != first) ++at;
  TopTwo<A> tops{begin + at, first, -Floating<A>::infinity};
  if (at > 0) tops.second = largest_of(a, at);
  if (at < n - 1) tops.second = MaxOrNaN()(tops.second, largest_of(a + at + 1, n - at - 1));
  return tops;
}

// f of a tile that starts at `begin`, 0 at the top; returns their sum.
template <class A>
STE_OPS_CLONES A tile_weights(const A* a, int64_t begin, int64_t n, const SubsetStep<A>& step, A inv_tau, A* f) {
  for (int64_t i = 0; i < n; ++i) f[i] = step.weight(a[i], inv_tau);
  if (step.top >= begin && step.top < begin + n) f[step.top - begin] = A(0);
  return tile_sum(f, n);
}

template <class A>
STE_OPS_CLONES void tile_next(A* a, const A* f, int64_t begin, int64_t n, const SubsetStep<A>& step) {
  const bool inside = step.top >= begin && step.top < begin + n;
  const A top = inside ? a[step.top - begin] + step.log_left : A(0);
  for (int64_t i = 0; i < n; ++i) a[i] = step.next(a[i], f[i]);
  if (inside) a[step.top - begin] = top;
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES SubsetSums<A> tile_pull_sums(
    const T* grad, const A* f, const A* t, int64_t begin, int64_t n, const SubsetStep<A>& step) {
  A product[kRowTile], back[kRowTile];
  for (int64_t i = 0; i < n; ++i) {
    A p = f[i] * step.scale;
    product[i] = p * load(grad[i]);
    back[i] = handed_back(p, t[i]);
  }
  if (step.top >= begin && step.top < begin + n) product[step.top - begin] = step.p_top * load(grad[step.top - begin]);
  return {tile_sum(product, n), tile_sum(back, n)};
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void tile_pull(const T* grad, const A* f, A* t, int64_t begin, int64_t n, const SubsetPull<A>& pull) {
  for (int64_t i = 0; i < n; ++i) t[i] = pull.other(f[i], load(grad[i]), t[i]);
  const int64_t top = pull.step.top - begin;
  if (top >= 0 && top < n) t[top] = pull.top(load(grad[top]));
}

// One row: all that its backward keeps.
template <class A>
struct SubsetRow {
  int64_t n, k, length, segments;
  A inv_tau;
  std::unique_ptr<A[]> a, t, kept, f;
  std::vector<SubsetStep<A>> steps;
  std::vector<TopTwo<A>> tops;
  std::vector<A> sums;
  std::vector<SubsetSums<A>> pull_sums;

  SubsetRow(int64_t n, int64_t k, A inv_tau)
      : n(n),
        k(k),
        length(SubsetPlan(k).length),
        segments(SubsetPlan(k).segments),
        inv_tau(inv_tau),
        a(scratch<A>(n)),
        t(scratch<A>(n)),
        kept(scratch<A>(segments * n)),
        f(scratch<A>(length * n)),
        steps(size_t(k)),
        tops(size_t(tiles_of(n))),
        sums(size_t(tiles_of(n))),
        pull_sums(size_t(tiles_of(n))) {}

  SubsetStep<A> step_from(const A* at) {
    each_tile(
        n, [&](int64_t tile, int64_t begin, int64_t end) { tops[tile] = tile_tops(at + begin, begin, end - begin); });
    TopTwo<A> of_row = TopTwo<A>::none();
    for (const TopTwo<A>& tile : tops) of_row = MergeTops()(of_row, tile);
    SubsetStep<A> step(of_row);
    each_tile(n, [&](int64_t tile, int64_t begin, int64_t end) {
      sums[tile] = tile_weights(at + begin, begin, end - begin, step, inv_tau, f.get() + begin);
    });
    A rest = sum_of_tiles(sums.data(), tiles_of(n), [](A sum) { return sum; });
    step.finish(of_row, rest, inv_tau);
    return step;
  }

  void next(A* at, const A* weights, const SubsetStep<A>& step) {
    each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
      tile_next(at + begin, weights + begin, begin, end - begin, step);
    });
  }

  // `keys` are those of the draw.
  template <class T>
  void backward(const A* keys, const T* grad, T* out) {
    std::copy(keys, keys + n, a.get());
    for (int64_t j = 0; j < k; ++j) {
      if (j % length == 0) std::copy(a.get(), a.get() + n, kept.get() + j / length * n);
      steps[j] = step_from(a.get());
      if (j < k - 1) next(a.get(), f.get(), steps[j]);
    }
    std::fill(t.get(), t.get() + n, A(0));
    for (int64_t segment = segments - 1; segment >= 0; --segment) {
      const int64_t first = segment * length, last = std::min(k, first + length) - 1;
      A* at = kept.get() + segment * n;
      for (int64_t j = first; j <= last; ++j) {
        A* weights = f.get() + (j - first) * n;
        each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
          tile_weights(at + begin, begin, end - begin, steps[j], inv_tau, weights + begin);
        });
        if (j < last) next(at, weights, steps[j]);
      }
      for (int64_t j = last; j >= first; --j) pull(steps[j], f.get() + (j - first) * n, grad);
    }
    for (int64_t i = 0; i < n; ++i) out[i] = store<T>(t[i]);
  }

  template <class T>
  void pull(const SubsetStep<A>& step, const A* weights, const T* grad) {
    each_tile(n, [&](int64_t tile, int64_t begin, int64_t end) {
      pull_sums[tile] = tile_pull_sums(grad + begin, weights + begin, t.get() + begin, begin, end - begin, step);
    });
    SubsetSums<A> total = sum_of_tiles(pull_sums.data(), tiles_of(n), [](const auto& sums) { return sums; });
    const SubsetPull<A> of_row{step, total, step.top < n ? t[step.top] : quiet_nan<A>(), inv_tau};
    each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
      tile_pull(grad + begin, weights + begin, t.get() + begin, begin, end - begin, of_row);
    });
  }
};

Tensor subset_backward_cpu(Tensor grad, Tensor logits, Tensor seed, int64_t k, double tau) {
  return subset_backward(
      grad, logits, seed, k, tau,
      [](auto type, const Tensor&, const RowShape& shape, int64_t k, auto inv_tau, const auto* grad, const auto* x,
         const uint64_t* seeds, auto* out) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t n = shape.n;
        if (has_short_rows(shape)) {
          return each_short_rows(shape, x, seeds, true, [&](int64_t row, int64_t count, const A*, const A* keys) {
            short_subsets_backward(keys, grad + row * n, count, n, k, inv_tau, out + row * n);
          });
        }
        each_rows(shape, x, seeds, true, [&](int64_t row, int64_t count, const A*, const A* keys) {
          SubsetRow<A> one(n, k, inv_tau);
          for (int64_t r = 0; r < count; ++r) one.backward(keys + r * n, grad + (row + r) * n, out + (row + r) * n);
        });
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("subset", TORCH_BOX(&subset_cpu));
  m.impl("subset_backward", TORCH_BOX(&subset_backward_cpu));
}

}  // namespace ste_ops
