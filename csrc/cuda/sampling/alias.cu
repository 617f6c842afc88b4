#include "../../alias.h"

#include "../../library.h"
#include "alias.cuh"

namespace ste_ops {
namespace {

constexpr int kDrawsPerThread = 4;

// Moves: reads at most 8 * draws + 8 * rows + 8, writes 8 * draws; an entry lies in a sector of its own.
__global__ void alias_sample_kernel(const uint64_t* table, const int64_t* capacity, const uint64_t* seed, int64_t rows,
                                    int64_t n, uint64_t start, uint64_t stride, int64_t num_samples, int64_t* out) {
  for (int64_t i = grid_index(); i < rows * num_samples; i += grid_stride()) {
    int64_t row = rows == 1 ? 0 : i / num_samples;
    AliasDraw draw(n, capacity[row]);
    Random128 random = philox_draw(*seed, uint64_t(row), start + stride * uint64_t(i - row * num_samples));
    uint64_t column = draw.column(low_bits(random));
    out[i] = capacity[row] > 0 ? draw.item(column, table[row * n + int64_t(column)], high_bits(random)) : -1;
  }
}

std::tuple<Tensor, Tensor> alias_table_cuda(Tensor weights) {
  Launcher launch(weights);
  return alias_table(weights, [&](auto type, auto... arguments) {
    build_tables<typename decltype(type)::type>(launch, arguments...);
  });
}

Tensor alias_sample_cuda(Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples,
                         int64_t stride) {
  Launcher launch(table);
  return alias_sample(table, capacity, seed, start, num_samples, stride,
                      [&](const Tensor&, const uint64_t* table, const int64_t* capacity, const uint64_t* seed,
                          int64_t rows, int64_t n, uint64_t start, uint64_t stride, int64_t num_samples, int64_t* out) {
                        int64_t blocks = blocks_for(rows * num_samples, kSamplingThreads * kDrawsPerThread);
                        launch(alias_sample_kernel, std::min(blocks, kMaxBlocks), kSamplingThreads, table, capacity,
                               seed, rows, n, start, stride, num_samples, out);
                      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("alias_table", TORCH_BOX(&alias_table_cuda));
  m.impl("alias_sample", TORCH_BOX(&alias_sample_cuda));
}

}  // namespace ste_ops
