// What the clipping kernels of the CPU share: norms, and loops over the blocks of many gradients.
#pragma once

#include <algorithm>

#include "cpu/loop.h"
#include "ops/clip/blocks.h"
#include "ops/library.h"

namespace ste_ops {

// The p-norm of all blocks, in parallel; with `of_each` that of each gradient too, from the same pass.
double norm_of_blocks(const Blocks& blocks, double p, bool has_float64, double* of_each = nullptr);

// The p-norm of one row of consecutive elements.
double norm_of_row(const void* x, int64_t length, Storage storage, double p);

// Multiplies, zeroes or leaves alone, in parallel.
void rewrite(const Blocks& blocks, const Scaling& scaling);

// x and out may be the same memory, which is why the compiler is told not to check.
template <class T>
STE_OPS_CLONES void scale_loop(const T* x, T* out, int64_t count, arithmetic_t<T> coefficient) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(load(x[i]) * coefficient);
}

template <class T>
STE_OPS_CLONES void clamp_loop(const T* x, T* out, int64_t count, arithmetic_t<T> bound) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(clamp_magnitude(load(x[i]), bound));
}

// Elements that are worth a second thread: a core reads more in the time that it takes to wake another one.
constexpr int64_t kReduceGrain = 8 * kGrain;

// Elements gathered from a strided gradient at a time.
constexpr int64_t kTile = 2048;

// Calls f(element pointer, elements in a row, their stride) over elements [begin, end) of a strided tensor.
template <class T, class F>
void for_each_run(T* data, const Strided& layout, int64_t begin, int64_t end, F&& f) {
  const int64_t row = layout.sizes[layout.dims - 1], stride = layout.strides[layout.dims - 1];
  for (int64_t i = begin; i < end;) {
    int64_t count = std::min(end - i, row - i % row);
    f(data + layout.offset(i), count, stride);
    i += count;
  }
}

template <class T>
void gather(const TensorData& gradient, int64_t begin, int64_t end, T* tile) {
  for_each_run(
      static_cast<const T*>(gradient.data), *gradient.layout, begin, end,
      [&](const T* x, int64_t count, int64_t stride) {
        for (int64_t i = 0; i < count; ++i) *tile++ = x[i * stride];
      });
}

template <class T>
void scatter(const TensorData& gradient, int64_t begin, int64_t end, const T* tile) {
  for_each_run(static_cast<T*>(gradient.data), *gradient.layout, begin, end, [&](T* x, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) x[i * stride] = *tile++;
  });
}

// Calls f(memory, count) over the elements [begin, end): on the gradient's own memory where it is dense, else on a tile
// gathered from it, which goes back where f returns true.
template <class T, class F>
void for_each_tile(const TensorData& gradient, int64_t begin, int64_t end, F&& f) {
  if (gradient.layout == nullptr) {
    f(static_cast<T*>(gradient.data) + begin, end - begin);
    return;
  }
  T tile[kTile];
  for (int64_t i = begin; i < end; i += kTile) {
    int64_t stop = std::min(end, i + kTile);
    gather(gradient, i, stop, tile);
    if (f(tile, stop - i)) scatter(gradient, i, stop, tile);
  }
}

// Calls f(gradient, begin, end, number of the block) for every block of every gradient, in parallel. Threads divide the
// elements, so that one large and many small gradients weigh what they should.
template <class F>
void for_each_block(const Blocks& blocks, const F& f, int64_t grain = kReduceGrain) {
  torch::stable::parallel_for(0, blocks.numel(), grain, [&](int64_t begin, int64_t end) {
    for (size_t g = blocks.find_element(begin); g < blocks.count() && blocks.first_element(g) < end; ++g) {
      const TensorData& gradient = blocks.gradient(g);
      int64_t start = blocks.first_element(g);
      int64_t block = start >= begin ? 0 : (begin - start + kBlock - 1) / kBlock;
      for (; block * kBlock < gradient.numel && start + block * kBlock < end; ++block) {
        f(gradient, block * kBlock, std::min(gradient.numel, (block + 1) * kBlock), blocks.first_block(g) + block);
      }
    }
  });
}

inline void scale_block(const TensorData& gradient, int64_t begin, int64_t end, double coefficient) {
  visit_storage(gradient.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    for_each_tile<T>(gradient, begin, end, [&](T* x, int64_t count) {
      scale_loop(x, x, count, arithmetic_t<T>(coefficient));
      return true;
    });
  });
}

inline void write_norm(const Tensor& out, int64_t index, double norm) {
  if (out.scalar_type() == ScalarType::Double) {
    static_cast<double*>(out.mutable_data_ptr())[index] = norm;
  } else {
    static_cast<float*>(out.mutable_data_ptr())[index] = float(norm);
  }
}

}  // namespace ste_ops
