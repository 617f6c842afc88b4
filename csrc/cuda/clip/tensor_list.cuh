// Many gradients in few launches, and the vectors of one gradient in a block.
#pragma once

#include "cuda/vector.cuh"
#include "ops/clip/blocks.h"

#ifdef STE_OPS_EMULATED
#define __grid_constant__
#endif

namespace ste_ops {

constexpr int kThreads = 512;

// What a launch over many gradients needs to know, passed by value: no copy to the device, nothing to keep alive, and a
// CUDA graph captures it with the launch. Kernel parameters may take 32,764 bytes since CUDA 12.1 and 4,096 before it.
template <int N>
struct Table {
  void* data[N];
  int64_t numel[N];
  uint32_t first_block[N + 1];
  Storage storage[N];
  int count;
};
constexpr int kSmallTable = 128;
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
constexpr int kLargeTable = 1500;
static_assert(sizeof(Table<kLargeTable>) <= 32764 - 128, "room for the other parameters");
#else
constexpr int kLargeTable = 180;
static_assert(sizeof(Table<kLargeTable>) <= 4096 - 128, "room for the other parameters");
#endif

// The gradient that this block works on.
template <class Table>
__device__ int find_tensor(const Table& table) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    (table.first_block[middle] <= blockIdx.x ? low : high) = middle;
  }
  return low;
}

__device__ inline int64_t at_most(int64_t count, int64_t limit) { return count < limit ? count : limit; }

template <class F>
__device__ void with_storage(Storage storage, F f) {
  switch (storage) {
    case Storage::kFloat: return f(Type<float>{});
    case Storage::kDouble: return f(Type<double>{});
    case Storage::kHalf: return f(Type<Half>{});
    default: return f(Type<BFloat16>{});
  }
}

// Elements before the first 16-byte boundary.
template <class T>
__device__ int64_t head_of(const T* x, int64_t count) {
  return at_most(int64_t((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(T)), count);
}

// Vectors that a thread reads before it uses the first.
constexpr int kAhead = 4;

// Calls of_vector(place, vector) for the block's vectors, and of_element(place) for the few elements beside them.
template <int ahead, class T, class OfVector, class OfElement>
__device__ void for_each_vector(T* x, int64_t count, OfVector of_vector, OfElement of_element) {
  const int64_t head = head_of(x, count), vectors = (count - head) / Vector<T>::size;
  T* body = x + head;
  if (threadIdx.x < head) of_element(x + threadIdx.x);
  for (int64_t first = threadIdx.x; first < vectors; first += int64_t(ahead) * blockDim.x) {
    Vector<T> v[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      int64_t place = first + int64_t(k) * blockDim.x;
      if (place < vectors) v[k] = read_vector(body, place * Vector<T>::size, count - head, true);
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      int64_t place = first + int64_t(k) * blockDim.x;
      if (place < vectors) of_vector(body + place * Vector<T>::size, v[k]);
    }
  }
  int64_t tail = head + vectors * Vector<T>::size + threadIdx.x;
  if (tail < count) of_element(x + tail);
}

template <class T, class Rule>
__device__ bool apply(Rule rule, T& x) {
  T before = x;
  x = rule(x);
  return bit_cast<bits_t<T>>(before) != bit_cast<bits_t<T>>(x);
}

// The block's elements through rule, in place. Vectors that come out as they were are not written.
template <class T, class Rule>
__device__ void rewrite_dense(T* x, int64_t count, Rule rule) {
  for_each_vector<kAhead>(
      x, count,
      [&](T* place, Vector<T> v) {
        bool changed = false;
#pragma unroll
        for (int i = 0; i < Vector<T>::size; ++i) changed |= apply(rule, v.value[i]);
        if (changed) write_vector(place, 0, Vector<T>::size, true, v);
      },
      [&](T* element) {
        T value = *element;
        if (apply(rule, value)) *element = value;
      });
}

template <class T, class Rule>
__device__ void rewrite_strided(T* data, const Strided& layout, int64_t begin, int64_t end, Rule rule) {
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    T* element = data + layout.offset(i);
    T value = *element;
    if (apply(rule, value)) *element = value;
  }
}

// TensorList as the launches take them: the dense ones by tables, then the others one by one.
class Launches {
 public:
  Launches(const Launcher& launch, const std::vector<TensorData>& gradients)
      : launch_(launch), order_(dense_first(gradients)), gradients_(in_order(gradients, order_)), blocks_(gradients_) {
    while (dense_ < gradients_.size() && gradients_[dense_].layout == nullptr) ++dense_;
  }

  const Launcher& launch() const { return launch_; }
  const Blocks& blocks() const { return blocks_; }
  // Of each launched gradient its place in the list that was given.
  const std::vector<int32_t>& order() const { return order_; }

  // of_table(table, blocks, first block, first gradient) and of_strided(gradient, blocks, first block, its number)
  template <class OfTable, class OfStrided>
  void run(OfTable of_table, OfStrided of_strided) const {
    for (size_t g = 0; g < dense_;) {
      size_t rest = dense_ - g;
      g += rest <= kSmallTable ? run_table<kSmallTable>(of_table, g) : run_table<kLargeTable>(of_table, g);
    }
    for (size_t g = dense_; g < gradients_.size(); ++g) {
      of_strided(
          gradients_[g], blocks_.first_block(g + 1) - blocks_.first_block(g), blocks_.first_block(g), int64_t(g));
    }
  }

 private:
  static std::vector<int32_t> dense_first(const std::vector<TensorData>& gradients) {
    std::vector<int32_t> order(gradients.size());
    for (size_t g = 0; g < order.size(); ++g) order[g] = int32_t(g);
    std::stable_partition(order.begin(), order.end(), [&](int32_t g) { return gradients[g].layout == nullptr; });
    return order;
  }

  static std::vector<TensorData> in_order(const std::vector<TensorData>& gradients, const std::vector<int32_t>& order) {
    std::vector<TensorData> launched;
    launched.reserve(order.size());
    for (int32_t g : order) launched.push_back(gradients[g]);
    return launched;
  }

  template <int N, class OfTable>
  size_t run_table(OfTable& of_table, size_t begin) const {
    Table<N> table;
    const size_t count = std::min<size_t>(N, dense_ - begin);
    table.count = int(count);
    for (size_t i = 0; i < count; ++i) {
      const TensorData& gradient = gradients_[begin + i];
      table.data[i] = gradient.data;
      table.numel[i] = gradient.numel;
      table.storage[i] = gradient.storage;
      table.first_block[i] = uint32_t(blocks_.first_block(begin + i) - blocks_.first_block(begin));
    }
    // The launch refuses more blocks than 31 bits count, so what fits below is exact.
    int64_t blocks = blocks_.first_block(begin + count) - blocks_.first_block(begin);
    table.first_block[count] = uint32_t(blocks);
    of_table(table, blocks, blocks_.first_block(begin), int64_t(begin));
    return count;
  }

  const Launcher& launch_;
  std::vector<int32_t> order_;
  std::vector<TensorData> gradients_;
  Blocks blocks_;
  size_t dense_ = 0;
};

}  // namespace ste_ops
