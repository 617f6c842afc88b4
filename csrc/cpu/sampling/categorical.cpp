// Draws from softmax(logits), their gradients, and the noise that they take.
#include <tuple>

#include "cpu/sampling/softmax_gradients.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// The first of the largest keys of each row.
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

// Draws from `rows` that are short enough for one block, or from one longer row.
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

// Draws from the rows of a block; notes the first that cannot be drawn from.
template <class T>
struct DrawBlock {
  using A = arithmetic_t<T>;
  int64_t n;
  bool short_rows;
  int64_t* index;
  T* out;
  std::atomic<int64_t>& invalid;

  void operator()(int64_t row, int64_t count, const A* largest, const A* keys) const {
    for (int64_t r = 0; r < count; ++r) {
      if (!is_drawable(largest[r])) lower(invalid, row + r);
    }
    if (short_rows) {
      draw_short_rows(keys, count, n, index + row, out + row * n);
    } else {
      draw_rows(keys, count, n, index + row, out + row * n);
    }
  }
};

template <class T>
void draw_categories(const CategoricalDraws& call) {
  const RowShape& shape = call.logits.shape;
  const T* x = typed_data<T>(call.logits.dense);
  const uint64_t* seeds = unsigned_data(call.logits.seed);
  std::atomic<int64_t> invalid(shape.rows);
  const DrawBlock<T> draw{
      shape.n, has_short_rows(shape), mutable_typed_data<int64_t>(call.index), mutable_typed_data<T>(call.out),
      invalid};
  if (draw.short_rows) {
    each_short_rows(shape, x, seeds, true, draw);
  } else {
    each_rows(shape, x, seeds, true, draw);
  }
  if (invalid < shape.rows) refuse_row(call.op, x, shape.n, invalid.load());
}

std::tuple<Tensor, Tensor> categorical_cpu(Tensor logits, Tensor seed) {
  const CategoricalDraws call(logits, seed);
  dispatch_logits(call.op, call.logits, [&](auto type) { draw_categories<typename decltype(type)::type>(call); });
  return {in_layout_of_input(logits, call.out), call.index};
}

template <class T>
struct ShortGradientBlock {
  using A = arithmetic_t<T>;
  int64_t n;
  Estimator estimator;
  A inv_tau;
  const T* grad;
  const int64_t* index;
  T* out;

  void operator()(int64_t row, int64_t count, const A*, const A* keys) const {
    short_gradients(grad + row * n, keys, count, n, estimator, inv_tau, index + row, out + row * n);
  }
};

// The gradients of the rows of a block, which are short enough for one tile, or of one longer row.
template <class T>
struct GradientBlock {
  using A = arithmetic_t<T>;
  int64_t n;
  Estimator estimator;
  A inv_tau;
  const T* grad;
  const int64_t* index;
  T* out;

  void operator()(int64_t row, int64_t count, const A*, const A* keys) const {
    A center[kRowTile], drawn[kRowTile];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = estimator == kStraightThrough ? 0 : index[row + r];
      const bool inside = at >= 0 && at < n;
      center[r] = estimator != kGumbel ? A(0) : inside ? keys[r * n + at] : quiet_nan<A>();
      drawn[r] = inside ? load(grad[(row + r) * n + at]) : quiet_nan<A>();
    }
    if (n <= kRowTile) {
      one_tile(row, count, keys, center, drawn);
    } else {
      many_tiles(row, keys, center, drawn[0]);
    }
  }

 private:
  bool reinmax() const { return estimator == kReinMax; }
  Block<T> block(int64_t place, const A* keys) const { return {grad + place, keys, inv_tau, reinmax()}; }
  RowGradient<A> of_row(int64_t row, const SoftmaxSums<A>& sums, A drawn) const {
    return RowGradient<A>(sums, drawn, reinmax() ? index[row] : -1, inv_tau, reinmax());
  }

  void one_tile(int64_t row, int64_t count, const A* keys, const A* center, const A* drawn) const {
    SoftmaxSums<A> sums[kRowTile];
    softmax_sums(block(row * n, keys), count, n, center, sums);
    std::vector<RowGradient<A>> rows;
    rows.reserve(size_t(count));
    for (int64_t r = 0; r < count; ++r) rows.push_back(of_row(row + r, sums[r], drawn[r]));
    softmax_gradients(block(row * n, keys), count, n, center, rows.data(), 0, out + row * n);
  }

  void many_tiles(int64_t row, const A* keys, const A* center, A drawn) const {
    std::vector<SoftmaxSums<A>> tiles(size_t(tiles_of(n)));
    each_tile(n, [&](int64_t t, int64_t begin, int64_t end) {
      softmax_sums(block(row * n + begin, keys + begin), 1, end - begin, center, &tiles[t]);
    });
    SoftmaxSums<A> total = sum_of_tiles(tiles.data(), tiles_of(n), [](const auto& sums) { return sums; });
    if (!reinmax()) total.one = A(1);
    const RowGradient<A> gradient = of_row(row, total, drawn);
    each_tile(n, [&](int64_t, int64_t begin, int64_t end) {
      const int64_t place = row * n + begin;
      softmax_gradients(block(place, keys + begin), 1, end - begin, center, &gradient, begin, out + place);
    });
  }
};

template <class T>
void gradients(const CategoricalGradient& call) {
  const RowShape& shape = call.logits.shape;
  const T *x = typed_data<T>(call.logits.dense), *grad = typed_data<T>(call.grad);
  const uint64_t* seeds = unsigned_data(call.logits.seed);
  const int64_t* index = typed_data<int64_t>(call.index);
  const auto inv_tau = arithmetic_t<T>(call.inv_tau);
  T* out = mutable_typed_data<T>(call.out);
  const bool noisy = call.estimator == kGumbel;
  if (has_short_rows(shape)) {
    const ShortGradientBlock<T> block{shape.n, call.estimator, inv_tau, grad, index, out};
    each_short_rows(shape, x, seeds, noisy, block);
  } else {
    const GradientBlock<T> block{shape.n, call.estimator, inv_tau, grad, index, out};
    each_rows(shape, x, seeds, noisy, block);
  }
}

Tensor categorical_backward_cpu(Tensor grad, Tensor logits, Tensor seed, Tensor index, int64_t estimator, double tau) {
  const CategoricalGradient call = prepare_categorical_gradient(grad, logits, seed, index, estimator, tau);
  dispatch_logits(call.op, call.logits, [&](auto type) { gradients<typename decltype(type)::type>(call); });
  return in_layout_of_input(logits, call.out);
}

template <class A>
STE_OPS_CLONES void noise_stretch(uint64_t seed, uint64_t place, int64_t count, A* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = A(0);
  add_noise(seed, place, count, out);
}

// The noise of places begin .. end - 1 of one seed.
template <class A>
struct NoiseOfSeed {
  uint64_t seed;
  A* out;
  void operator()(int64_t begin, int64_t end) const {
    noise_stretch<A>(seed, uint64_t(begin), end - begin, out + begin);
  }
};

template <class A>
void fill_noise(const GumbelNoise& call) {
  const RowShape& shape = call.logits.shape;
  const uint64_t* seeds = unsigned_data(call.logits.seed);
  A* out = mutable_typed_data<A>(call.out);
  const int64_t numel = shape.per_seed * shape.n;
  for (int64_t s = 0; s < shape.rows / shape.per_seed; ++s) {
    parallel_aligned(numel, kDraws, NoiseOfSeed<A>{seeds[s], out + s * numel});
  }
}

Tensor gumbel_noise_cpu(Tensor logits, Tensor seed) {
  const GumbelNoise call(logits, seed);
  dispatch_logits(
      call.op, call.logits, [&](auto type) { fill_noise<arithmetic_t<typename decltype(type)::type>>(call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("categorical", TORCH_BOX(&categorical_cpu));
  m.impl("categorical_backward", TORCH_BOX(&categorical_backward_cpu));
  m.impl("gumbel_noise", TORCH_BOX(&gumbel_noise_cpu));
}

}  // namespace ste_ops
