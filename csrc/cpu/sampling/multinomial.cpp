#include "../../multinomial.h"

#include <algorithm>
#include <atomic>

#include "../../library.h"
#include "draws.h"

namespace ste_ops {
namespace {

// Returns how many weights are positive; `invalid` gets whether one is no weight.
template <class T>
STE_OPS_CLONES int64_t key_stretch(const bits_t<T>* weights, uint64_t seed, uint64_t row, int64_t begin, int64_t end,
                                   double* keys, bool& invalid) {
  int64_t positive = 0;
  invalid = false;
  for (int64_t start = begin; start < end; start += kDraws) {
    RandomBlock<kDraws> random;
    philox_block(seed, row, uint64_t(start), random);
    int64_t count = std::min(kDraws, end - start);
    for (int64_t i = 0; i < count; ++i) {
      bits_t<T> w = weights[start + i];
      keys[start + i] = exponential_key<T>(w, random.low[i]);
      positive += magnitude<T>(w) != 0;
      invalid |= !is_weight<T>(w);
    }
  }
  return positive;
}

std::tuple<Tensor, Tensor> exponential_keys_cpu(Tensor weights, Tensor seed) {
  return exponential_keys(weights, seed,
                          [](auto type, const Tensor&, const auto* weights, const uint64_t* seed, int64_t rows,
                             int64_t n, double* keys, int64_t* positive) {
                            using T = typename decltype(type)::type;
                            for (int64_t row = 0; row < rows; ++row) {
                              const auto* w = weights + row * n;
                              std::atomic<int64_t> count(0), invalid(n);
                              parallel_aligned(n, kDraws, [&](int64_t begin, int64_t end) {
                                bool some_invalid;
                                count +=
                                    key_stretch<T>(w, *seed, uint64_t(row), begin, end, keys + row * n, some_invalid);
                                if (some_invalid)
                                  lower(invalid, std::find_if_not(w + begin, w + end, is_weight<T>) - w);
                              });
                              positive[row] = invalid < n ? -1 - invalid : count.load();
                            }
                          });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("exponential_keys", TORCH_BOX(&exponential_keys_cpu)); }

}  // namespace ste_ops
