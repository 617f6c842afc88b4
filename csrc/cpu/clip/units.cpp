#include "ops/clip/units.h"

#include "cpu/clip/blocks.h"

namespace ste_ops {
namespace {

// From here on a unit is worth all threads at once; shorter ones are dealt out whole.
constexpr int64_t kLongUnit = 2 * kReduceGrain;

double norm_of(const TensorData& unit) {
  if (unit.layout == nullptr) return norm_of_row(unit.data, unit.numel, unit.storage, 2);
  return norm_of_blocks(Blocks(&unit, 1), 2, unit.storage == Storage::kDouble);
}

void clip_unit(const WeightAndGradient& pair, int64_t index, double clip_factor, double eps) {
  const TensorData grad = pair.grad.unit(index);
  const double coefficient = agc_coefficient(norm_of(pair.weight.unit(index)), norm_of(grad), clip_factor, eps);
  if (coefficient == 1) return;
  for_each_block(Blocks(&grad, 1), [&](const TensorData& unit, int64_t begin, int64_t end, int64_t) {
    scale_block(unit, begin, end, coefficient);
  });
}

void clip_grad_agc_cpu(StableIValue* stack, uint64_t, uint64_t) {
  constexpr const char* op = "clip_grad_agc_";
  TensorList weights(op, stack[0], Access::kRead, Placed::kOnCpu);
  TensorList grads(op, stack[1], Access::kWrite, Placed::kOnCpu);
  const double clip_factor = to<double>(stack[2]), eps = to<double>(stack[3]);
  const std::vector<WeightAndGradient> pairs = pairs_of(op, weights, grads);
  std::vector<int64_t> first(1, 0);  // element of the pair
  for (const WeightAndGradient& pair : pairs) first.push_back(first.back() + pair.numel());

  for (const WeightAndGradient& pair : pairs) {
    if (pair.grad.length < kLongUnit) continue;
    for (int64_t unit = 0; unit < pair.count; ++unit) clip_unit(pair, unit, clip_factor, eps);
  }
  torch::stable::parallel_for(0, first.back(), kReduceGrain / 2, [&](int64_t begin, int64_t end) {
    size_t p = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; p < pairs.size() && first[p] < end; ++p) {
      const WeightAndGradient& pair = pairs[p];
      const int64_t length = pair.grad.length;
      if (length >= kLongUnit) continue;
      int64_t unit = begin <= first[p] ? 0 : (begin - first[p] + length - 1) / length;
      for (; unit < pair.count && first[p] + unit * length < end; ++unit) clip_unit(pair, unit, clip_factor, eps);
    }
  });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("clip_grad_agc_", &clip_grad_agc_cpu); }

}  // namespace ste_ops
