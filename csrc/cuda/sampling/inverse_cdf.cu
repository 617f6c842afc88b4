// Draws by the inverse CDF: a block takes a short row with all its draws, or a draw from a long row.
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
    const uint64_t* before = mass_before + number * tiles.per_row;
    const int64_t low = stretch_at(before, tiles.per_row, unit);
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

// The weights of a short row, in the order of tile_item.
template <class T>
struct ShortRow {
  bits_t<T> weight[kTileItems];
  int64_t n;

  __device__ ShortRow(const bits_t<T>* row, int64_t n) : n(n) {
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(0, k);
      weight[k] = i < n ? row[i] : bits_t<T>(0);
    }
  }

  // All of a Row but its total.
  __device__ Row measured() const {
    uint64_t largest = 0, invalid = 0, coarse = 0;
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      largest = Greater()(largest, magnitude<T>(weight[k]));
      if (!is_weight<T>(weight[k])) invalid = Greater()(invalid, uint64_t(n - tile_item(0, k)));
    }
    Row row;
    row.largest = block_reduce(largest, Greater(), uint64_t(0));
    row.invalid = block_reduce(invalid, Greater(), uint64_t(0));
    if (row.invalid != 0) return row;
    const int64_t exponent = coarse_exponent<T>(row.largest, n);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) coarse += coarse_mass<T>(weight[k], exponent);
    row.coarse_total = block_sum(coarse);
    return row;
  }

  // Writes the mass before each weight and returns that of all.
  __device__ uint64_t sum(const Row& row, uint64_t* before) const {
    uint64_t masses[kTileItems];
    const int64_t exponent = mass_exponent<T>(row, n);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) masses[k] = row.invalid == 0 ? mass<T>(weight[k], exponent) : 0;
    TileSums<uint64_t> sums(sum_of(masses), 0);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const uint64_t here = sums.next(masses[k]);
      if (tile_item(0, k) < n) before[tile_item(0, k)] = here;
    }
    return sums.total;
  }
};

// Moves: reads rows * n * T + 8, writes 8 * draws + 8 * rows.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads) short_row_sample_kernel(
    int64_t rows, int64_t n, const bits_t<T>* weights, const uint64_t* seed, int64_t num_samples, int64_t* out,
    int64_t* total) {
  __shared__ uint64_t before[kShortRow];
  for (int64_t number = blockIdx.x; number < rows; number += gridDim.x) {
    const ShortRow<T> weights_of_row(weights + number * n, n);
    Row row = weights_of_row.measured();
    row.total = weights_of_row.sum(row, before);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_samples; i += kSamplingThreads) {
      int64_t item = -1;
      if (row.total != 0) {
        const uint64_t unit = uniform_below(philox_draw(*seed, uint64_t(number), uint64_t(i)), row.total);
        item = stretch_at(before, n, unit);
      }
      out[number * num_samples + i] = item;
    }
    if (threadIdx.x == 0) total[number] = total_of(row, n);
    __syncthreads();  // the array is free for the next row
  }
}

template <class T>
void draw_short_rows(const Launcher& launch, const InverseCdfDraws& call) {
  const int64_t rows = call.weights.rows;
  launch(
      short_row_sample_kernel<T>, std::min(rows, resident_blocks(launch)), kSamplingThreads, rows, call.weights.n,
      call.weights.bits<T>(), unsigned_data(call.seed), call.num_samples, mutable_typed_data<int64_t>(call.out),
      mutable_typed_data<int64_t>(call.total));
}

template <class T>
void draw_rows(const Launcher& launch, const InverseCdfDraws& call) {
  if (call.weights.n <= kShortRow) return draw_short_rows<T>(launch, call);
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
