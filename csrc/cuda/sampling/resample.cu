// Resampling of particles: sums of masses, and a search in them for each ancestor.
#include "ops/sampling/resample.h"

#include <algorithm>

#include "cuda/sampling/fault.cuh"
#include "cuda/sampling/masses.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kDrawsPerThread = 4;

// What the particles of all rows are resampled from: `up_to` are the sums of their masses, and for residual resampling
// `copied` the sums of their copies, `units` and `first` as ResidueDraw takes them.
struct Particles {
  uint64_t *up_to, *copied, *units;
  int64_t* first;
};

// The sums of tiles become the sums before each; the sum of all is the row's total, from which the positions follow.
// Moves: reads 8 * tiles + 8 * rows + 8, writes 8 * tiles + 81 * rows.
__global__ void positions_kernel(
    Tiles tiles, Resampling scheme, int64_t num_samples, const uint64_t* seed, uint64_t* tile_mass, Row* rows,
    Positions* positions, int64_t* total) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    uint64_t sum = scan_row(tile_mass + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x != 0) continue;
    rows[row].total = sum;
    total[row] = total_of(rows[row], tiles.n);
    if (scheme == Resampling::kSystematic) {
      positions[row] = Positions::systematic(sum, uint64_t(num_samples), *seed, uint64_t(row));
    } else {
      positions[row] = Positions::stratified(sum, uint64_t(num_samples), *seed, uint64_t(row));
    }
  }
}

// The sums of masses up to every particle, and the copies of each tile.
// Moves: reads rows * n * T + 8 * tiles + 24 * rows, writes 8 * rows * n.
// Moves (residual): reads rows * n * T + 8 * tiles + 32 * rows, writes 8 * rows * n + 8 * tiles.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads) sum_up_kernel(
    Tiles tiles, const bits_t<T>* weights, const Row* rows, const uint64_t* mass_before, bool residual,
    int64_t num_samples, uint64_t* up_to, uint64_t* tile_copied) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const Row& row = rows[tiles.row(tile)];
    uint64_t masses[kTileItems], copied = 0;
    tile_masses<T>(tiles, tile, weights, row, masses);
    TileSums<uint64_t> sums(sum_of(masses), mass_before[tile]);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(tiles.begin(tile), k);
      const uint64_t sum = sums.next(masses[k]);
      if (i < tiles.end(tile)) up_to[tiles.offset(tile) + i] = sum + masses[k];
    }
    if (!residual) continue;
    const Copies copies(row.total > 0 ? row.total : 1, row.total > 0 ? uint64_t(num_samples) : 0);
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) copied += copies.of(masses[k]).whole;
    copied = block_sum(copied);
    if (threadIdx.x == 0) tile_copied[tile] = copied;
  }
}

// Moves: reads 8 * tiles, writes 8 * tiles + 8 * rows.
__global__ void scan_copied_kernel(Tiles tiles, uint64_t* tile_copied, uint64_t* row_copied) {
  for (int64_t row = blockIdx.x; row < tiles.rows; row += gridDim.x) {
    uint64_t sum = scan_row(tile_copied + row * tiles.per_row, tiles.per_row);
    if (threadIdx.x == 0) row_copied[row] = sum;
  }
}

// Sums of copies, and where residues end.
// Moves: reads 8 * (rows * n + 2 * tiles + rows) (again 8 * rows * n), writes at most 8 * rows * (2 * n + buckets).
__global__ void __launch_bounds__(kSamplingThreads) residue_kernel(
    Tiles tiles, const Row* rows, const uint64_t* mass_before, const uint64_t* copied_before, int64_t num_samples,
    int64_t buckets, Particles particles) {
  // A thread's own sums and masses: in registers they would leave a multiprocessor few warps.
  __shared__ uint64_t kept_up_to[kTileItems][kSamplingThreads], kept_masses[kTileItems][kSamplingThreads];
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const Row& row = rows[tiles.row(tile)];
    if (row.total == 0) continue;
    const Copies copies(row.total, uint64_t(num_samples));
    const int64_t begin = tiles.begin(tile), end = tiles.end(tile), offset = tiles.offset(tile);
    uint64_t up_to[kTileItems], masses[kTileItems], copied = 0;
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(begin, k);
      up_to[k] = i < end ? particles.up_to[offset + i] : 0;
      masses[k] = i >= end ? 0 : i > begin ? particles.up_to[offset + i - 1] : mass_before[tile];
    }
#pragma unroll
    for (int k = 0; k < kTileItems; ++k) {
      masses[k] = up_to[k] - masses[k];
      copied += copies.of(masses[k]).whole;
      kept_up_to[k][threadIdx.x] = up_to[k];
      kept_masses[k][threadIdx.x] = masses[k];
    }
    TileSums<uint64_t> sums(copied, copied_before[tile]);
#pragma unroll 1
    for (int k = 0; k < kTileItems; ++k) {
      const int64_t i = tile_item(begin, k);
      const Quotient own = copies.of(kept_masses[k][threadIdx.x]);
      const uint64_t all = sums.next(own.whole) + own.whole;
      if (i >= end) continue;
      const Bucket bucket = Bucket::after(kept_up_to[k][threadIdx.x], all, copies);
      particles.copied[offset + i] = all;
      particles.units[offset + i] = bucket.units;
      // The residue reaches into a bucket that none before it has reached.
      if (own.rest >= bucket.units) particles.first[tiles.row(tile) * buckets + bucket.number] = i;
    }
  }
}

// Moves: reads at most 8 * rows * n + 80 * rows, writes 8 * draws; a draw searches log2(n) sums.
__global__ void ancestors_kernel(
    Tiles tiles, int64_t num_samples, const Row* rows, const Positions* positions, const uint64_t* up_to,
    int64_t* out) {
  for (int64_t i = grid_index(); i < tiles.rows * num_samples; i += grid_stride()) {
    const int64_t row = tiles.rows == 1 ? 0 : divided(i, num_samples);
    if (rows[row].invalid != 0 || rows[row].total == 0) {
      out[i] = -1;
      continue;
    }
    out[i] = first_above(up_to + row * tiles.n, 0, tiles.n, positions[row](uint64_t(i - row * num_samples)));
  }
}

// Moves: reads at most rows * (16 * n + 8 * buckets + 24) + 8, writes 8 * draws; a draw searches log2(n) sums.
__global__ void residual_kernel(
    Tiles tiles, int64_t num_samples, int64_t buckets, const Row* rows, const uint64_t* row_copied,
    const uint64_t* seed, Particles particles, int64_t* out) {
  for (int64_t i = grid_index(); i < tiles.rows * num_samples; i += grid_stride()) {
    const int64_t row = tiles.rows == 1 ? 0 : divided(i, num_samples), begin = row * tiles.n;
    if (rows[row].invalid != 0 || rows[row].total == 0) {
      out[i] = -1;
      continue;
    }
    uint64_t k = uint64_t(i - row * num_samples), copied = row_copied[row];
    if (k < copied) {
      out[i] = first_above(particles.copied + begin, 0, tiles.n, k);
    } else {
      Random128 random = philox_draw(*seed, uint64_t(row), k - copied);
      uint64_t rest = uint64_t(num_samples) - copied;
      ResidueDraw draw(low_bits(random), high_bits(random), rest, rows[row].total);
      out[i] = draw.particle(rest, particles.units + begin, particles.first + row * buckets, tiles.n);
    }
  }
}

// A row that has no ancestors.
// Moves: reads 8 * rows, writes 0.
struct NoAncestors {
  const int64_t* total;
  __device__ bool operator()(int64_t row) const { return total[row] <= 0; }
};

template <class T>
void resample_rows(const Launcher& launch, const DeferredErrors& errors, const ResampleCall& call) {
  const bool residual = call.scheme == Resampling::kResidual;
  const int64_t rows = call.weights.rows, n = call.weights.n, num_samples = call.num_samples;
  const int64_t buckets = std::min(n, num_samples);
  const Tensor& like = call.weights.dense;
  const Tiles tiles(rows, n);
  auto allocate = [&](int64_t words) { return empty_vector(words, ScalarType::Long, like); };
  const int64_t words_of_position = int64_t(sizeof(Positions) / 8);
  Tensor row_memory = zero_rows(like, rows);
  Tensor position_memory = torch::stable::new_zeros(like, {rows * words_of_position}, ScalarType::Long);
  Tensor sums = allocate(2 * tiles.count() + rows), up_to = allocate(rows * n);
  Tensor of_residues = allocate(residual ? 2 * rows * n : 0), of_buckets = allocate(residual ? rows * buckets : 0);

  const bits_t<T>* weights = call.weights.bits<T>();
  const uint64_t* seed = unsigned_data(call.seed);
  int64_t *out = mutable_typed_data<int64_t>(call.out), *total = mutable_typed_data<int64_t>(call.total);
  Row* row = mutable_typed_data<Row>(row_memory);
  Positions* positions = mutable_typed_data<Positions>(position_memory);
  uint64_t* mass_before = mutable_unsigned_data(sums);
  uint64_t *copied_before = mass_before + tiles.count(), *row_copied = copied_before + tiles.count();
  uint64_t* residues = mutable_unsigned_data(of_residues);
  const Particles particles{
      mutable_unsigned_data(up_to), residues, residues + (residual ? rows * n : 0),
      mutable_typed_data<int64_t>(of_buckets)};

  const int64_t most = resident_blocks(launch);
  const int64_t blocks = std::min(tiles.count(), most), row_blocks = std::min(rows, most);
  const int64_t out_blocks = grid_for(blocks_for(rows * num_samples, kDrawsPerThread));
  measure_tiles<T>(launch, tiles, weights, row, mass_before);
  launch(
      positions_kernel, row_blocks, kSamplingThreads, tiles, call.scheme, num_samples, seed, mass_before, row,
      positions, total);
  report_first_row(
      launch, like, rows, NoAncestors{total}, ReportState<T>{weights, total, n, call.weights.one_row}, errors);
  launch(
      sum_up_kernel<T>, blocks, kSamplingThreads, tiles, weights, row, mass_before, residual, num_samples,
      particles.up_to, copied_before);
  if (!residual) {
    launch(ancestors_kernel, out_blocks, kSamplingThreads, tiles, num_samples, row, positions, particles.up_to, out);
    return;
  }
  launch(scan_copied_kernel, row_blocks, kSamplingThreads, tiles, copied_before, row_copied);
  launch(
      residue_kernel, blocks, kSamplingThreads, tiles, row, mass_before, copied_before, num_samples, buckets,
      particles);
  launch(
      residual_kernel, out_blocks, kSamplingThreads, tiles, num_samples, buckets, row, row_copied, seed, particles,
      out);
}

Tensor resample(
    const Launcher& launch, const char* op, Resampling scheme, const Tensor& weights, const Tensor& seed,
    int64_t num_samples) {
  DeferredErrors errors(weights, op);
  const ResampleCall call = prepare_resample(op, scheme, weights, seed, num_samples);
  dispatch_weights(
      op, call.weights, [&](auto type) { resample_rows<typename decltype(type)::type>(launch, errors, call); });
  return call.out;
}

Tensor systematic_resample_cuda(Tensor weights, Tensor seed, int64_t num_samples) {
  return resample(Launcher(weights), "systematic_resample", Resampling::kSystematic, weights, seed, num_samples);
}
Tensor stratified_resample_cuda(Tensor weights, Tensor seed, int64_t num_samples) {
  return resample(Launcher(weights), "stratified_resample", Resampling::kStratified, weights, seed, num_samples);
}
Tensor residual_resample_cuda(Tensor weights, Tensor seed, int64_t num_samples) {
  return resample(Launcher(weights), "residual_resample", Resampling::kResidual, weights, seed, num_samples);
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("systematic_resample", TORCH_BOX(&systematic_resample_cuda));
  m.impl("stratified_resample", TORCH_BOX(&stratified_resample_cuda));
  m.impl("residual_resample", TORCH_BOX(&residual_resample_cuda));
}

}  // namespace ste_ops
