#include "../../inverse_cdf.h"

#include "../../library.h"
#include "masses.cuh"

namespace ste_ops {
namespace {

// Moves: reads rows * n * T + 24 * rows, writes 8 * tiles.
template <class T>
__global__ void tile_mass_kernel(Tiles tiles, const bits_t<T>* weights, const Row* rows, uint64_t* tile_mass) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const Row& row = rows[tiles.row(tile)];
    const bits_t<T>* w = weights + tiles.offset(tile);
    int64_t exponent = mass_exponent<T>(row, tiles.n);
    uint64_t sum = 0;
    if (row.invalid == 0) {
      for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kSamplingThreads) {
        sum += mass<T>(w[i], exponent);
      }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) tile_mass[tile] = sum;
  }
}

// Moves: reads 8 * tiles + 8 * rows, writes 8 * tiles + 16 * rows.
__global__ void scan_total_kernel(Tiles tiles, uint64_t* tile_mass, Row* rows, int64_t* total) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    uint64_t sum = scan_row(tile_mass + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x != 0) continue;
    rows[row].total = sum;
    total[row] = total_of(rows[row], tiles.n);
  }
}

// A block to a draw: it finds the tile, and each thread looks at its items there.
// Moves: reads at most rows * n * T + 8 * tiles + 32 * rows + 8, writes 8 * draws; a draw looks at half a tile.
template <class T>
__global__ void inverse_cdf_sample_kernel(Tiles tiles, const bits_t<T>* weights, const Row* rows,
                                          const uint64_t* mass_before, const uint64_t* seed, int64_t num_samples,
                                          int64_t* out) {
  for (int64_t draw = blockIdx.x; draw < tiles.rows * num_samples; draw += gridDim.x) {
    int64_t number = draw / num_samples;
    const Row& row = rows[number];
    if (row.invalid != 0 || row.total == 0) {
      if (threadIdx.x == 0) out[draw] = -1;
      continue;
    }
    uint64_t unit = uniform_below(philox_draw(*seed, uint64_t(number), uint64_t(draw % num_samples)), row.total);
    // The last tile that begins at or before the unit.
    const uint64_t* before = mass_before + number * tiles.per_row;
    int64_t low = 0, high = tiles.per_row - 1;
    while (low < high) {
      int64_t middle = low + (high - low + 1) / 2;
      if (before[middle] <= unit) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    int64_t tile = number * tiles.per_row + low;
    const bits_t<T>* w = weights + tiles.offset(tile);
    int64_t exponent = mass_exponent<T>(row, tiles.n);
    uint64_t prefix = before[low];
    for (int64_t begin = tiles.begin(tile); begin < tiles.end(tile) && prefix <= unit; begin += kSamplingThreads) {
      int64_t i = begin + threadIdx.x;
      uint64_t m = i < tiles.end(tile) ? mass<T>(w[i], exponent) : 0, total;
      uint64_t up_to = prefix + block_inclusive_scan(m, total);
      if (up_to - m <= unit && unit < up_to) out[draw] = i;
      prefix += total;
    }
  }
}

std::tuple<Tensor, Tensor> inverse_cdf_sample_cuda(Tensor weights, Tensor seed, int64_t num_samples) {
  Launcher launch(weights);
  return inverse_cdf_sample(
      weights, seed, num_samples,
      [&](auto type, const Tensor& like, const auto* weights, const uint64_t* seed, int64_t rows, int64_t n,
          int64_t num_samples, int64_t* out, int64_t* total) {
        using T = typename decltype(type)::type;
        Tiles tiles{rows, n, blocks_for(n, kSamplingTile)};
        Tensor row_memory = torch::stable::new_zeros(like, {rows * int64_t(sizeof(Row) / 8)}, ScalarType::Long);
        Tensor sums = empty_vector(tiles.count(), ScalarType::Long, like);
        Row* row = static_cast<Row*>(row_memory.mutable_data_ptr());
        uint64_t* mass_before = mutable_unsigned_data(sums);
        int64_t blocks = std::min(tiles.count(), kMaxBlocks);
        launch(inspect_kernel<T>, blocks, kSamplingThreads, tiles, weights, row);
        launch(coarse_kernel<T>, blocks, kSamplingThreads, tiles, weights, row);
        launch(tile_mass_kernel<T>, blocks, kSamplingThreads, tiles, weights, row, mass_before);
        launch(scan_total_kernel, std::min(rows, kMaxBlocks), kSamplingThreads, tiles, mass_before, row, total);
        launch(inverse_cdf_sample_kernel<T>, std::min(rows * num_samples, kMaxBlocks), kSamplingThreads, tiles, weights,
               row, mass_before, seed, num_samples, out);
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("inverse_cdf_sample", TORCH_BOX(&inverse_cdf_sample_cuda)); }

}  // namespace ste_ops
