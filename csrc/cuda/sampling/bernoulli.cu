#include "../../bernoulli.h"
#include "../../core/philox.h"

#include "../../library.h"
#include "../vector.cuh"
#include "deferred.cuh"

namespace ste_ops {
namespace {

// NaN where p is no probability, and a report: nothing asserts on the device.
// Moves: reads n * T + 8 * seeds, writes n * T.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    bernoulli_kernel(const bits_t<T>* p, const uint64_t* seed, int64_t rows, int64_t numel, bits_t<T>* out,
                     bool aligned, DeferredErrors errors) {
  for (int k = 0; k < kChunksPerWarp; ++k) {
    int64_t begin = vector_begin<bits_t<T>>(k);
    Vector<bits_t<T>> v = read_vector(p, begin, rows * numel, aligned);
    for (int j = 0; j < Vector<bits_t<T>>::size && begin + j < rows * numel; ++j) {
      int64_t row = rows == 1 ? 0 : (begin + j) / numel;
      Random128 random = philox_draw(seed[row], 0, uint64_t(begin + j - row * numel));
      bits_t<T> drawn = bernoulli<T>(v.value[j], low_bits(random)) ? kOne<T> : bits_t<T>(0);
      if (!is_probability<T>(v.value[j])) {
        errors.report(Fault::probability(begin + j, double(load(bit_cast<T>(v.value[j])))));
        drawn = kNaN<T>;
      }
      v.value[j] = drawn;
    }
    write_vector(out, begin, rows * numel, aligned, v);
  }
}

Tensor bernoulli_cuda(Tensor p, Tensor seed) {
  Launcher launch(p);
  DeferredErrors errors(p, "bernoulli_ste");
  return bernoulli(
      p, seed,
      [&](auto type, const Tensor&, const auto* p, const uint64_t* seed, int64_t rows, int64_t numel, auto* out) {
        using T = typename decltype(type)::type;
        launch(bernoulli_kernel<T>, elementwise_blocks<bits_t<T>>(rows * numel), kElementwiseThreads, p, seed, rows,
               numel, out, aligned16(p) && aligned16(out), errors);
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("bernoulli", TORCH_BOX(&bernoulli_cuda)); }

}  // namespace ste_ops
