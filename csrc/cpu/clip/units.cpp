#include "ops/clip/units.h"

#include "cpu/clip/norm.h"
#include "cpu/clip/scale.h"
#include "ops/library.h"

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
  if (coefficient != 1) for_each_block(Blocks(&grad, 1), ChangeBlock<Scale>{{coefficient}});
}

// The short units of all pairs that begin within a range of the pairs' elements.
struct ClipShortUnits {
  const ClipGradAgc& call;
  std::vector<int64_t> first = {0};  // element of the pair

  explicit ClipShortUnits(const ClipGradAgc& call) : call(call) {
    for (const WeightAndGradient& pair : call.pairs) first.push_back(first.back() + pair.numel());
  }

  void operator()(int64_t begin, int64_t end) const {
    size_t p = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; p < call.pairs.size() && first[p] < end; ++p) clip(call.pairs[p], begin - first[p], end - first[p]);
  }

  void clip(const WeightAndGradient& pair, int64_t begin, int64_t end) const {
    const int64_t length = pair.grad.length;
    if (length >= kLongUnit) return;
    int64_t unit = begin <= 0 ? 0 : (begin + length - 1) / length;
    for (; unit < pair.count && unit * length < end; ++unit) clip_unit(pair, unit, call.clip_factor, call.eps);
  }
};

void clip_grad_agc_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const ClipGradAgc call(stack, Placed::kOnCpu);
  for (const WeightAndGradient& pair : call.pairs) {
    if (pair.grad.length < kLongUnit) continue;
    for (int64_t unit = 0; unit < pair.count; ++unit) clip_unit(pair, unit, call.clip_factor, call.eps);
  }
  const ClipShortUnits clip_short(call);
  torch::stable::parallel_for(0, clip_short.first.back(), kReduceGrain / 2, clip_short);
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("clip_grad_agc_", &clip_grad_agc_cpu); }

}  // namespace ste_ops
