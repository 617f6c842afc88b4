// Draws of k out of n, and the gradients of their relaxation.
#include "ops/sampling/subset.h"

#include "cpu/sampling/short_subsets.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Writes 1 at the k largest keys (at the first of equal ones); `copy` is n numbers to work in.
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

template <class T>
bool is_finite_logit(T x) {
  return load(x) >= -kHuge<arithmetic_t<T>>;
}

// The first row that cannot be drawn from, and the first with fewer than k to choose from.
struct FirstFaults {
  std::atomic<int64_t> invalid, few;
  explicit FirstFaults(int64_t rows) : invalid(rows), few(rows) {}

  // Whether row number `row` has k to choose from.
  template <class A>
  bool inspect(int64_t row, A largest, int64_t finite, int64_t k) {
    if (!is_drawable(largest)) {
      lower(invalid, row);
    } else if (finite < k) {
      lower(few, row);
    }
    return is_drawable(largest) && finite >= k;
  }
};

// Draws from the rows of a block.
template <class T>
struct ChooseInShortRows {
  using A = arithmetic_t<T>;
  int64_t n, k;
  T* out;
  FirstFaults& faults;

  void operator()(int64_t row, int64_t count, const A* largest, const A* keys) const {
    A finite[kRowTile];
    choose_in_short_rows(keys, count, n, k, finite, out + row * n);
    for (int64_t r = 0; r < count; ++r) faults.inspect(row + r, largest[r], int64_t(finite[r]), k);
  }
};

template <class T>
struct ChooseInRows {
  using A = arithmetic_t<T>;
  int64_t n, k;
  T* out;
  FirstFaults& faults;

  void operator()(int64_t row, int64_t count, const A* largest, const A* keys) const {
    const auto copy = scratch<A>(n);
    for (int64_t r = 0; r < count; ++r) {
      const A* of_row = keys + r * n;
      const int64_t finite = std::count_if(of_row, of_row + n, is_finite_logit<A>);
      if (faults.inspect(row + r, largest[r], finite, k)) choose<T>(of_row, n, k, copy.get(), out + (row + r) * n);
    }
  }
};

template <class T>
void refuse_few(const char* op, const T* x, int64_t n, int64_t row, int64_t k) {
  const int64_t above = std::count_if(x + row * n, x + (row + 1) * n, is_finite_logit<T>);
  STE_CHECK(
      false, op, ": k must be at most ", above, ", the number of categories above -inf in row ", row, ", got ", k);
}

template <class T>
void draw_subsets(const SubsetDraws& call) {
  const RowShape& shape = call.logits.shape;
  const T* x = typed_data<T>(call.logits.dense);
  const uint64_t* seeds = unsigned_data(call.logits.seed);
  T* out = mutable_typed_data<T>(call.out);
  FirstFaults faults(shape.rows);
  if (has_short_rows(shape)) {
    each_short_rows(shape, x, seeds, true, ChooseInShortRows<T>{shape.n, call.k, out, faults});
  } else {
    each_rows(shape, x, seeds, true, ChooseInRows<T>{shape.n, call.k, out, faults});
  }
  if (faults.invalid < shape.rows) refuse_row(call.op, x, shape.n, faults.invalid.load());
  if (faults.few < shape.rows) refuse_few(call.op, x, shape.n, faults.few.load(), call.k);
}

Tensor subset_cpu(Tensor logits, Tensor seed, int64_t k) {
  const SubsetDraws call = prepare_subset_draws(logits, seed, k);
  dispatch_logits(call.op, call.logits, [&](auto type) { draw_subsets<typename decltype(type)::type>(call); });
  return in_layout_of_input(logits, call.out);
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
STE_OPS_CLONES A tile_weights(const A* a, int64_t begin, int64_t n, const SubsetSoftmax<A>& softmax, A inv_tau, A* f) {
  for (int64_t i = 0; i < n; ++i) f[i] = softmax.weight(a[i], inv_tau);
  if (softmax.top >= begin && softmax.top < begin + n) f[softmax.top - begin] = A(0);
  return tile_sum(f, n);
}

template <class A>
STE_OPS_CLONES void tile_next(A* a, const A* f, int64_t begin, int64_t n, const SubsetSoftmax<A>& softmax) {
  const bool inside = softmax.top >= begin && softmax.top < begin + n;
  const A top = inside ? a[softmax.top - begin] + softmax.log_left : A(0);
  for (int64_t i = 0; i < n; ++i) a[i] = softmax.next(a[i], f[i]);
  if (inside) a[softmax.top - begin] = top;
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES SubsetSums<A> tile_pull_sums(
    const T* grad, const A* f, const A* t, int64_t begin, int64_t n, const SubsetSoftmax<A>& softmax) {
  A product[kRowTile], back[kRowTile];
  for (int64_t i = 0; i < n; ++i) {
    A p = f[i] * softmax.scale;
    product[i] = p * load(grad[i]);
    back[i] = handed_back(p, t[i]);
  }
  if (softmax.top >= begin && softmax.top < begin + n)
    product[softmax.top - begin] = softmax.p_top * load(grad[softmax.top - begin]);
  return {tile_sum(product, n), tile_sum(back, n)};
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void tile_pull(const T* grad, const A* f, A* t, int64_t begin, int64_t n, const SubsetPull<A>& pull) {
  for (int64_t i = 0; i < n; ++i) t[i] = pull.other(f[i], load(grad[i]), t[i]);
  const int64_t top = pull.softmax.top - begin;
  if (top >= 0 && top < n) t[top] = pull.top(load(grad[top]));
}

// All that the backward of one row keeps.
template <class A>
struct SubsetRow {
  int64_t n, k, length, segments;
  A inv_tau;
  std::unique_ptr<A[]> a, t, kept, f;
  std::vector<SubsetSoftmax<A>> softmaxes;
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
        softmaxes(size_t(k)),
        tops(size_t(tiles_of(n))),
        sums(size_t(tiles_of(n))),
        pull_sums(size_t(tiles_of(n))) {}

  SubsetSoftmax<A> softmax_from(const A* at) {
    each_tile(
        n, [&](int64_t tile, int64_t begin, int64_t end) { tops[tile] = tile_tops(at + begin, begin, end - begin); });
    TopTwo<A> of_row = TopTwo<A>::none();
    for (const TopTwo<A>& tile : tops) of_row = MergeTops()(of_row, tile);
    SubsetSoftmax<A> softmax(of_row);
    each_tile(n, [&](int64_t tile, int64_t begin, int64_t end) {
      sums[tile] = tile_weights(at + begin, begin, end - begin, softmax, inv_tau, f.get() + begin);
    });
    A rest = sum_of_tiles(sums.data(), tiles_of(n), [](A sum) { return sum; });
    softmax.finish(of_row, rest, inv_tau);
    return softmax;
  }

  void next(A* at, const A* weights, const SubsetSoftmax<A>& softmax) {
    each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
      tile_next(at + begin, weights + begin, begin, end - begin, softmax);
    });
  }

  // `keys` are those of the draw.
  template <class T>
  void backward(const A* keys, const T* grad, T* out) {
    std::copy(keys, keys + n, a.get());
    for (int64_t j = 0; j < k; ++j) {
      if (j % length == 0) std::copy(a.get(), a.get() + n, kept.get() + j / length * n);
      softmaxes[j] = softmax_from(a.get());
      if (j < k - 1) next(a.get(), f.get(), softmaxes[j]);
    }
    std::fill(t.get(), t.get() + n, A(0));
    for (int64_t segment = segments - 1; segment >= 0; --segment) {
      const int64_t first = segment * length, last = std::min(k, first + length) - 1;
      A* at = kept.get() + segment * n;
      for (int64_t j = first; j <= last; ++j) {
        A* weights = f.get() + (j - first) * n;
        each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
          tile_weights(at + begin, begin, end - begin, softmaxes[j], inv_tau, weights + begin);
        });
        if (j < last) next(at, weights, softmaxes[j]);
      }
      for (int64_t j = last; j >= first; --j) pull(softmaxes[j], f.get() + (j - first) * n, grad);
    }
    for (int64_t i = 0; i < n; ++i) out[i] = store<T>(t[i]);
  }

  template <class T>
  void pull(const SubsetSoftmax<A>& softmax, const A* weights, const T* grad) {
    each_tile(n, [&](int64_t tile, int64_t begin, int64_t end) {
      pull_sums[tile] = tile_pull_sums(grad + begin, weights + begin, t.get() + begin, begin, end - begin, softmax);
    });
    SubsetSums<A> total = sum_of_tiles(pull_sums.data(), tiles_of(n), [](const auto& sums) { return sums; });
    const SubsetPull<A> of_row{softmax, total, softmax.top < n ? t[softmax.top] : quiet_nan<A>(), inv_tau};
    each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
      tile_pull(grad + begin, weights + begin, t.get() + begin, begin, end - begin, of_row);
    });
  }
};

template <class T>
struct ShortSubsetsBackward {
  using A = arithmetic_t<T>;
  int64_t n, k;
  A inv_tau;
  const T* grad;
  T* out;

  void operator()(int64_t row, int64_t count, const A*, const A* keys) const {
    short_subsets_backward(keys, grad + row * n, count, n, k, inv_tau, out + row * n);
  }
};

template <class T>
struct SubsetsBackward {
  using A = arithmetic_t<T>;
  int64_t n, k;
  A inv_tau;
  const T* grad;
  T* out;

  void operator()(int64_t row, int64_t count, const A*, const A* keys) const {
    SubsetRow<A> one(n, k, inv_tau);
    for (int64_t r = 0; r < count; ++r) one.backward(keys + r * n, grad + (row + r) * n, out + (row + r) * n);
  }
};

template <class T>
void subset_gradients(const SubsetGradient& call) {
  const RowShape& shape = call.logits.shape;
  const T *x = typed_data<T>(call.logits.dense), *grad = typed_data<T>(call.grad);
  const uint64_t* seeds = unsigned_data(call.logits.seed);
  const auto inv_tau = arithmetic_t<T>(call.inv_tau);
  T* out = mutable_typed_data<T>(call.out);
  if (has_short_rows(shape)) {
    each_short_rows(shape, x, seeds, true, ShortSubsetsBackward<T>{shape.n, call.k, inv_tau, grad, out});
  } else {
    each_rows(shape, x, seeds, true, SubsetsBackward<T>{shape.n, call.k, inv_tau, grad, out});
  }
}

Tensor subset_backward_cpu(Tensor grad, Tensor logits, Tensor seed, int64_t k, double tau) {
  const SubsetGradient call = prepare_subset_gradient(grad, logits, seed, k, tau);
  dispatch_logits(call.op, call.logits, [&](auto type) { subset_gradients<typename decltype(type)::type>(call); });
  return in_layout_of_input(logits, call.out);
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("subset", TORCH_BOX(&subset_cpu));
  m.impl("subset_backward", TORCH_BOX(&subset_backward_cpu));
}

}  // namespace ste_ops
