// Tensor lists as launches take them, and the vectors of one tensor in a block.
#pragma once

#include "cuda/clip/table.cuh"
#include "cuda/vector.cuh"
#include "ops/clip/blocks.h"

namespace ste_ops {

constexpr int kThreads = 512;

// Dense tensors; a block of threads for each of their blocks.
template <int N>
struct TensorTable : TableOf<N> {
  void* data[N];
  int64_t numel[N];
  Storage storage[N];

  static int64_t blocks_of(const TensorData& tensor) { return blocks_for(tensor.numel, kBlock); }
  void set(int i, const TensorData& tensor) {
    data[i] = tensor.data;
    numel[i] = tensor.numel;
    storage[i] = tensor.storage;
  }
};

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

// A tensor list in the order of its launches: the dense tensors by tables, then the others one by one.
class Launches {
 public:
  Launches(const Launcher& launch, const std::vector<TensorData>& tensors)
      : launch_(launch), order_(dense_first(tensors)), tensors_(in_order(tensors, order_)), blocks_(tensors_) {
    while (dense_ < tensors_.size() && tensors_[dense_].layout == nullptr) ++dense_;
  }

  const Launcher& launch() const { return launch_; }
  const Blocks& blocks() const { return blocks_; }
  // Of each launched tensor its place in the list that was given.
  const std::vector<int32_t>& order() const { return order_; }

  // Calls use(table, place) for tables of the dense tensors, and use(tensor, place) for each strided one.
  template <class Use>
  void run(const Use& use) const {
    for_each_table<TensorTable>(tensors_.data(), dense_, use);
    for (size_t t = dense_; t < tensors_.size(); ++t) {
      const int64_t first = blocks_.first_block(t);
      use(tensors_[t], TablePlace{blocks_.first_block(t + 1) - first, first, int64_t(t)});
    }
  }

 private:
  static std::vector<int32_t> dense_first(const std::vector<TensorData>& tensors) {
    std::vector<int32_t> order(tensors.size());
    for (size_t t = 0; t < order.size(); ++t) order[t] = int32_t(t);
    std::stable_partition(order.begin(), order.end(), [&](int32_t t) { return tensors[t].layout == nullptr; });
    return order;
  }

  static std::vector<TensorData> in_order(const std::vector<TensorData>& tensors, const std::vector<int32_t>& order) {
    std::vector<TensorData> launched;
    launched.reserve(order.size());
    for (int32_t t : order) launched.push_back(tensors[t]);
    return launched;
  }

  const Launcher& launch_;
  std::vector<int32_t> order_;
  std::vector<TensorData> tensors_;
  Blocks blocks_;
  size_t dense_ = 0;
};

}  // namespace ste_ops
