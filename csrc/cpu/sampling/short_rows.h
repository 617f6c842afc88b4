// Rows of at most kRowLanes logits. A block of them lies transposed, element i of row r at i * rows + r, so that loops
// run over the rows, and one number of each row is a lane of a register. The bits are those of logit_rows.h.
#pragma once

#include "cpu/sampling/logit_rows.h"

namespace ste_ops {

// Fewer rows of one seed than this do not fill a register.
constexpr int64_t kShortRows = 8;

inline bool has_short_rows(const RowShape& shape) { return shape.n <= kRowLanes && shape.per_seed >= kShortRows; }

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void transposed_in(const T* x, int64_t rows, int64_t n, A* out) {
  A wide[kRowTile];
  for (int64_t i = 0; i < rows * n; ++i) wide[i] = load(x[i]);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) out[i * rows + r] = wide[r * n + i];
  }
}

template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void transposed_out(const A* x, int64_t rows, int64_t n, T* out) {
  A wide[kRowTile];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) wide[r * n + i] = x[i * rows + r];
  }
  for (int64_t i = 0; i < rows * n; ++i) out[i] = store<T>(wide[i]);
}

// The sum of each row, added as tile_sum does: a lane begins with 0, so none is -0 and those past n change nothing.
template <class A>
STE_OPS_INLINE void short_sums(const A* x, int64_t rows, int64_t n, A* sum) {
  A lane[kRowTile];
  for (int64_t i = 0; i < rows * n; ++i) lane[i] = A(0) + x[i];
  int64_t width = 1;
  while (width < n) width *= 2;
  for (width /= 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width && l + width < n; ++l) {
      for (int64_t r = 0; r < rows; ++r) lane[l * rows + r] += lane[(l + width) * rows + r];
    }
  }
  for (int64_t r = 0; r < rows; ++r) sum[r] = lane[r];
}

template <class A>
STE_OPS_CLONES void short_largest(const A* x, int64_t rows, int64_t n, A* largest) {
  for (int64_t r = 0; r < rows; ++r) largest[r] = x[r];
  for (int64_t i = 1; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) largest[r] = MaxOrNaN()(largest[r], x[i * rows + r]);
  }
}

// The first place of the largest, the last place of all where there is a NaN: as a number of the keys' type, so that
// all lanes of a loop have one width.
template <class A>
STE_OPS_CLONES void short_places(const A* x, const A* largest, int64_t rows, int64_t n, A* at) {
  for (int64_t r = 0; r < rows; ++r) at[r] = A(n - 1);
  for (int64_t i = n - 2; i >= 0; --i) {
    for (int64_t r = 0; r < rows; ++r) at[r] = x[i * rows + r] == largest[r] ? A(i) : at[r];
  }
}

// The logits minus the row's largest, plus the noise of their places where it is asked for.
template <class T, class A = arithmetic_t<T>>
STE_OPS_CLONES void short_keys(
    const T* x, int64_t rows, int64_t n, bool noisy, uint64_t seed, uint64_t place, A* largest, A* keys) {
  transposed_in(x, rows, n, keys);
  short_largest(keys, rows, n, largest);
  A noise[kRowTile];
  for (int64_t i = 0; i < rows * n; ++i) noise[i] = A(0);
  if (noisy) add_noise(seed, place, rows * n, noise);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) keys[i * rows + r] = (keys[i * rows + r] - largest[r]) + noise[r * n + i];
  }
}

// f(row, count, largest, keys) over all rows, for as many at a time as a block holds; the keys are transposed.
template <class T, class F>
void each_short_rows(const RowShape& shape, const T* x, const uint64_t* seeds, bool noisy, const F& f) {
  using A = arithmetic_t<T>;
  parallel_rows(shape.rows, shape.n, [&](int64_t begin, int64_t end) {
    A keys[kRowTile], largest[kRowTile];
    for (int64_t row = begin; row < end;) {
      const int64_t count = rows_at_once(shape, row, end);
      short_keys(x + row * shape.n, count, shape.n, noisy, seeds[shape.seed(row)], shape.place(row), largest, keys);
      f(row, count, largest, keys);
      row += count;
    }
  });
}

}  // namespace ste_ops
