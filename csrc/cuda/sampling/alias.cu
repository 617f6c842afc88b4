// Builds alias tables and draws from them.
#include "ops/sampling/alias.h"

#include <tuple>

#include "cuda/sampling/alias.cuh"
#include "cuda/sampling/host.cuh"
#include "cuda/vector.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// A draw waits for one load from anywhere in the table. A thread has so many loads under way; each two are neighbours.
constexpr int kDraws = 8;

// 2^lane_bits threads work on a row at a time and take pairs of neighbouring draws in turn. Bounds that leave a thread
// 80 registers spill on some archs; 512 threads of 8 loads are 4096 of a multiprocessor under way.
// Moves: reads at most 8 * draws + 8 * rows + 8, writes 8 * draws; an entry lies in a sector of its own.
__global__ void __launch_bounds__(kSamplingThreads, 2) alias_sample_kernel(
    const uint64_t* table, const int64_t* capacity, const uint64_t* seed, int64_t rows, int64_t n, uint64_t start,
    uint64_t stride, int64_t num_samples, int lane_bits, int64_t* out) {
  constexpr int kPair = Vector<int64_t>::size;
  const int lanes = 1 << lane_bits, lane = int(threadIdx.x) & (lanes - 1), teams = kSamplingThreads >> lane_bits;
  const int64_t first_row = int64_t(blockIdx.y) * teams + (int(threadIdx.x) >> lane_bits);
  const int64_t first_draw = int64_t(blockIdx.x) * kDraws * lanes + kPair * lane;
  const uint64_t key = *seed;
  for (int64_t row = first_row; row < rows; row += int64_t(gridDim.y) * teams) {
    const uint64_t* entries = table + row * n;
    const AliasDraw draw(n, capacity[row]);
    const int64_t undrawable = capacity[row] > 0 ? 0 : -1;
    int64_t* of_row = out + row * num_samples;
    const bool aligned = aligned16(of_row);
    for (int64_t first = first_draw; first < num_samples; first += int64_t(gridDim.x) * kDraws * lanes) {
      const int left = int(std::min<int64_t>(num_samples - first, kDraws * kSamplingThreads));
      uint64_t column[kDraws], random[kDraws], entry[kDraws];
#pragma unroll
      for (int k = 0; k < kDraws; ++k) {
        const int ahead = k / kPair * kPair * lanes + k % kPair;
        const Random128 bits = philox_draw(key, uint64_t(row), start + stride * uint64_t(first + ahead));
        column[k] = draw.column(low_bits(bits));
        random[k] = high_bits(bits);
        entry[k] = ahead < left ? entries[column[k]] : 0;
      }
#pragma unroll
      for (int k = 0; k < kDraws; k += kPair) {
        Vector<int64_t> drawn;
#pragma unroll
        for (int j = 0; j < kPair; ++j) {
          drawn.value[j] = draw.item(column[k + j], entry[k + j], random[k + j]) | undrawable;
        }
        write_vector(of_row + first, int64_t(k) * lanes, left, aligned, drawn);
      }
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> alias_table_cuda(Tensor weights) {
  Launcher launch(weights);
  const AliasTables call(weights);
  dispatch_weights(
      call.op, call.weights, [&](auto type) { build_tables<typename decltype(type)::type>(launch, call); });
  return {call.table, call.capacity};
}

Tensor alias_sample_cuda(
    Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples, int64_t stride) {
  Launcher launch(table);
  const AliasDraws call = prepare_alias_draws(table, capacity, seed, start, num_samples, stride);
  if (call.out.numel() == 0) return call.out;
  int lane_bits = 0;
  while (kDraws << lane_bits < num_samples && 1 << lane_bits < kSamplingThreads) ++lane_bits;
  const int64_t most = resident_blocks(launch);
  const int64_t x = std::min(blocks_for(num_samples, kDraws << lane_bits), most);
  const int64_t y = std::min(blocks_for(call.rows, kSamplingThreads >> lane_bits), blocks_for(most, x));
  launch(
      alias_sample_kernel, {x, y}, kSamplingThreads, unsigned_data(table), typed_data<int64_t>(capacity),
      unsigned_data(seed), call.rows, call.n, call.start, call.stride, num_samples, lane_bits,
      mutable_typed_data<int64_t>(call.out));
  return call.out;
}

STE_OPS_CUDA_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cuda));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cuda));
}

}  // namespace ste_ops
