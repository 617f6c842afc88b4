// Draws by the inverse CDF; a block takes a draw at a time.
#include "ops/sampling/inverse_cdf.h"

#include <tuple>

#include "cuda/sampling/host.cuh"
#include "cuda/sampling/masses.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Moves: reads 8 * tiles + 8 * rows, writes 8 * tiles + 16 * rows.
__global__ void scan_total_kernel(Tiles tiles, uint64_t* tile_mass, Row* rows, int64_t* total) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    uint64_t sum = scan_row(tile_mass + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x != 0) continue;
    rows[row].total = sum;
    total[row] = total_of(rows[row], tiles.n);
  }
}

// A block takes a draw at a time: it finds the tile, and each thread looks at its items there.
// Moves: reads at most rows * n * T + 8 * tiles + 32 * rows + 8, writes 8 * draws; a draw looks at half a tile.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads) inverse_cdf_sample_kernel(
    Tiles tiles, const bits_t<T>* weights, const Row* rows, const uint64_t* mass_before, const uint64_t* seed,
    int64_t num_samples, int64_t* out) {
  for (int64_t draw = blockIdx.x; draw < tiles.rows * num_samples; draw += gridDim.x) {
    const int64_t number = divided(draw, num_samples);
    const Row& row = rows[number];
    if (row.invalid != 0 || row.total == 0) {
      if (threadIdx.x == 0) out[draw] = -1;
      continue;
    }
    uint64_t unit =
        uniform_below(philox_draw(*seed, uint64_t(number), uint64_t(draw - number * num_samples)), row.total);
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
    uint64_t masses[kTileItems];
    tile_masses<T>(tiles, tile, weights, row, masses);
    TileSums<uint64_t> sums(sum_of(masses), before[low]);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const uint64_t sum = sums.next(masses[k]);
      if (sum <= unit && unit < sum + masses[k]) out[draw] = tile_item(tiles.begin(tile), k);
    }
  }
}

template <class T>
void draw_rows(const Launcher& launch, const InverseCdfDraws& call) {
  const int64_t rows = call.weights.rows;
  const Tiles tiles(rows, call.weights.n);
  Tensor row_memory = zero_rows(call.weights.dense, rows);
  Tensor sums = empty_vector(tiles.count(), ScalarType::Long, call.weights.dense);
  const bits_t<T>* weights = call.weights.bits<T>();
  Row* row = mutable_typed_data<Row>(row_memory);
  uint64_t* mass_before = mutable_unsigned_data(sums);
  const int64_t most = resident_blocks(launch);
  measure_tiles<T>(launch, tiles, weights, row, mass_before);
  launch(
      scan_total_kernel, std::min(rows, most), kSamplingThreads, tiles, mass_before, row,
      mutable_typed_data<int64_t>(call.total));
  launch(
      inverse_cdf_sample_kernel<T>, std::min(rows * call.num_samples, most), kSamplingThreads, tiles, weights, row,
      mass_before, unsigned_data(call.seed), call.num_samples, mutable_typed_data<int64_t>(call.out));
}

}  // namespace

std::tuple<Tensor, Tensor> inverse_cdf_sample_cuda(Tensor weights, Tensor seed, int64_t num_samples) {
  Launcher launch(weights);
  const InverseCdfDraws call = prepare_inverse_cdf_draws(weights, seed, num_samples);
  dispatch_weights(call.op, call.weights, [&](auto type) { draw_rows<typename decltype(type)::type>(launch, call); });
  return {call.out, call.total};
}

STE_OPS_CUDA_IMPL(m) { m.impl("inverse_cdf_sample", TORCH_BOX(&inverse_cdf_sample_cuda)); }

}  // namespace ste_ops
