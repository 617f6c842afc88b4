#include "../sampling.h"

#include "../library.h"
#include "alias.cuh"
#include "vector.cuh"

namespace ste_ops {
namespace {

constexpr int kDrawsPerThread = 4;

__global__ void alias_sample_kernel(const uint64_t* table, const int64_t* capacity, const uint64_t* seed, int64_t rows,
                                    int64_t n, uint64_t start, int64_t num_samples, int64_t* out) {
  for (int64_t i = grid_index(); i < rows * num_samples; i += grid_stride()) {
    int64_t row = rows == 1 ? 0 : i / num_samples;
    AliasDraw draw(n, capacity[row]);
    Random128 random = philox_draw(*seed, uint64_t(row), start + uint64_t(i - row * num_samples));
    uint64_t column = draw.column(low_bits(random));
    out[i] = capacity[row] > 0 ? draw.item(column, table[row * n + int64_t(column)], high_bits(random)) : -1;
  }
}

// `positive` comes in as zeros; `invalid` gets n - index of the first weight that is none.
template <class T>
__global__ void exponential_keys_kernel(Tiles tiles, const bits_t<T>* weights, const uint64_t* seed, double* keys,
                                        uint64_t* positive, uint64_t* invalid) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    int64_t row = tiles.row(tile), offset = tiles.offset(tile);
    uint64_t count = 0, first = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kAliasThreads) {
      bits_t<T> w = weights[offset + i];
      keys[offset + i] = exponential_key<T>(w, low_bits(philox_draw(*seed, uint64_t(row), uint64_t(i))));
      count += magnitude<T>(w) != 0;
      if (!is_weight<T>(w)) first = Greater()(first, uint64_t(tiles.n - i));
    }
    count = block_sum(count);
    first = block_reduce(first, Greater(), uint64_t(0));
    if (threadIdx.x == 0) {
      atomicAdd(atomic(positive[row]), static_cast<unsigned long long>(count));
      if (first != 0) atomicMax(atomic(invalid[row]), static_cast<unsigned long long>(first));
    }
  }
}

__global__ void positive_kernel(int64_t rows, int64_t n, const uint64_t* counts, const uint64_t* invalid,
                                int64_t* positive) {
  for (int64_t row = grid_index(); row < rows; row += grid_stride()) {
    positive[row] = invalid[row] != 0 ? int64_t(invalid[row]) - 1 - n : int64_t(counts[row]);
  }
}

// NaN where p is no probability: nothing asserts on the device, and a NaN does not go unnoticed.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    bernoulli_kernel(const bits_t<T>* p, const uint64_t* seed, int64_t rows, int64_t numel, bits_t<T>* out,
                     bool aligned) {
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<bits_t<T>>(k);
    Vector<bits_t<T>> v = read_vector(p, begin, rows * numel, aligned);
    for (int j = 0; j < Vector<bits_t<T>>::size && begin + j < rows * numel; ++j) {
      int64_t row = rows == 1 ? 0 : (begin + j) / numel;
      Random128 random = philox_draw(seed[row], 0, uint64_t(begin + j - row * numel));
      bits_t<T> drawn = bernoulli<T>(v.value[j], low_bits(random)) ? kOne<T> : bits_t<T>(0);
      v.value[j] = is_probability<T>(v.value[j]) ? drawn : kNaN<T>;
    }
    write_vector(out, begin, rows * numel, aligned, v);
  }
}

std::tuple<Tensor, Tensor> alias_table_cuda(Tensor weights) {
  Launcher launch(weights);
  return alias_table(weights, [&](auto type, auto... arguments) {
    build_tables<typename decltype(type)::type>(launch, arguments...);
  });
}

Tensor alias_sample_cuda(Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples) {
  Launcher launch(table);
  return alias_sample(table, capacity, seed, start, num_samples,
                      [&](const Tensor&, const uint64_t* table, const int64_t* capacity, const uint64_t* seed,
                          int64_t rows, int64_t n, uint64_t start, int64_t num_samples, int64_t* out) {
                        int64_t blocks = blocks_for(rows * num_samples, kAliasThreads * kDrawsPerThread);
                        launch(alias_sample_kernel, std::min(blocks, kMaxBlocks), kAliasThreads, table, capacity, seed,
                               rows, n, start, num_samples, out);
                      });
}

std::tuple<Tensor, Tensor> exponential_keys_cuda(Tensor weights, Tensor seed) {
  Launcher launch(weights);
  return exponential_keys(weights, seed,
                          [&](auto type, const Tensor& like, const auto* weights, const uint64_t* seed, int64_t rows,
                              int64_t n, double* keys, int64_t* positive) {
                            using T = typename decltype(type)::type;
                            Tiles tiles{rows, n, blocks_for(n, kAliasTile)};
                            Tensor memory = torch::stable::new_zeros(like, {2 * rows}, ScalarType::Long);
                            uint64_t *counts = mutable_unsigned_data(memory), *invalid = counts + rows;
                            launch(exponential_keys_kernel<T>, std::min(tiles.count(), kMaxBlocks), kAliasThreads,
                                   tiles, weights, seed, keys, counts, invalid);
                            launch(positive_kernel, std::min(blocks_for(rows, kAliasThreads), kMaxBlocks),
                                   kAliasThreads, rows, n, counts, invalid, positive);
                          });
}

Tensor bernoulli_cuda(Tensor p, Tensor seed) {
  Launcher launch(p);
  return bernoulli(
      p, seed,
      [&](auto type, const Tensor&, const auto* p, const uint64_t* seed, int64_t rows, int64_t numel, auto* out) {
        using T = typename decltype(type)::type;
        launch(bernoulli_kernel<T>, elementwise_blocks<bits_t<T>>(rows * numel), kElementwiseThreads, p, seed, rows,
               numel, out, aligned16(p) && aligned16(out));
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cuda));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cuda));
  m.impl("exponential_keys", TORCH_BOX(&exponential_keys_cuda));
  m.impl("bernoulli", TORCH_BOX(&bernoulli_cuda));
}

}  // namespace ste_ops
