#include "../../core/philox.h"
#include "../../multinomial.h"

#include "../../library.h"
#include "tiles.cuh"

namespace ste_ops {
namespace {

// `positive` comes in as zeros; `invalid` gets n - index of the first weight that is none.
template <class T>
__global__ void exponential_keys_kernel(Tiles tiles, const bits_t<T>* weights, const uint64_t* seed, double* keys,
                                        uint64_t* positive, uint64_t* invalid) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    int64_t row = tiles.row(tile), offset = tiles.offset(tile);
    uint64_t count = 0, first = 0;
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kSamplingThreads) {
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

std::tuple<Tensor, Tensor> exponential_keys_cuda(Tensor weights, Tensor seed) {
  Launcher launch(weights);
  return exponential_keys(weights, seed,
                          [&](auto type, const Tensor& like, const auto* weights, const uint64_t* seed, int64_t rows,
                              int64_t n, double* keys, int64_t* positive) {
                            using T = typename decltype(type)::type;
                            Tiles tiles{rows, n, blocks_for(n, kSamplingTile)};
                            Tensor memory = torch::stable::new_zeros(like, {2 * rows}, ScalarType::Long);
                            uint64_t *counts = mutable_unsigned_data(memory), *invalid = counts + rows;
                            launch(exponential_keys_kernel<T>, std::min(tiles.count(), kMaxBlocks), kSamplingThreads,
                                   tiles, weights, seed, keys, counts, invalid);
                            launch(positive_kernel, std::min(blocks_for(rows, kSamplingThreads), kMaxBlocks),
                                   kSamplingThreads, rows, n, counts, invalid, positive);
                          });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("exponential_keys", TORCH_BOX(&exponential_keys_cuda)); }

}  // namespace ste_ops
