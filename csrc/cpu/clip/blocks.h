// Loops over the blocks of a tensor list, and over tiles of a block.
#pragma once

#include <algorithm>

#include "cpu/loop.h"
#include "ops/clip/blocks.h"

namespace ste_ops {

// Elements that are worth a second thread: a core reads more in the time that it takes to wake another one.
constexpr int64_t kReduceGrain = 8 * kPart;

// Elements gathered from a strided tensor at a time.
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
void gather(const TensorData& tensor, int64_t begin, int64_t end, T* tile) {
  const auto read_run = [&](const T* x, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) *tile++ = x[i * stride];
  };
  for_each_run(static_cast<const T*>(tensor.data), *tensor.layout, begin, end, read_run);
}

template <class T>
void scatter(const TensorData& tensor, int64_t begin, int64_t end, const T* tile) {
  const auto write_run = [&](T* x, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) x[i * stride] = *tile++;
  };
  for_each_run(static_cast<T*>(tensor.data), *tensor.layout, begin, end, write_run);
}

// Calls f(memory, count) over the elements [begin, end): on the tensor's own memory where it is dense, else on a tile
// gathered from it, which goes back where f returns true.
template <class T, class F>
void for_each_tile(const TensorData& tensor, int64_t begin, int64_t end, F&& f) {
  if (tensor.layout == nullptr) {
    f(static_cast<T*>(tensor.data) + begin, end - begin);
    return;
  }
  T tile[kTile];
  for (int64_t i = begin; i < end; i += kTile) {
    int64_t stop = std::min(end, i + kTile);
    gather(tensor, i, stop, tile);
    if (f(tile, stop - i)) scatter(tensor, i, stop, tile);
  }
}

// Calls f(tensor, begin, end, number of the block) for every block of every tensor, in parallel. Threads divide the
// elements, so that one large and many small tensors weigh what they should.
template <class F>
void for_each_block(const Blocks& blocks, const F& f, int64_t grain = kGrain) {
  torch::stable::parallel_for(0, blocks.numel(), grain, [&](int64_t begin, int64_t end) {
    for (size_t t = blocks.find_element(begin); t < blocks.count() && blocks.first_element(t) < end; ++t) {
      const TensorData& tensor = blocks.tensor(t);
      int64_t start = blocks.first_element(t);
      int64_t block = start >= begin ? 0 : (begin - start + kBlock - 1) / kBlock;
      for (; block * kBlock < tensor.numel && start + block * kBlock < end; ++block) {
        f(tensor, block * kBlock, std::min(tensor.numel, (block + 1) * kBlock), blocks.first_block(t) + block);
      }
    }
  });
}

}  // namespace ste_ops
