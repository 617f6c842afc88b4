// What the CPU loops share: run-time multi-versioning and the grain of a parallel loop.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

// One function body, compiled for AVX-512, AVX2 and the baseline; the loader picks the best that the processor has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STE_OPS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define STE_OPS_CLONES
#endif

#define STE_OPS_INLINE inline __attribute__((always_inline))

namespace ste_ops {

// Elements a thread takes at least, as in ATen (at::internal::GRAIN_SIZE).
constexpr int64_t kGrain = 32768;

// Calls f(begin, end) over [0, numel) with every boundary but the last a multiple of `align`, so that threads never
// share a byte of a mask.
template <class F>
void parallel_aligned(int64_t numel, int64_t align, const F& f) {
  int64_t units = (numel + align - 1) / align;
  torch::stable::parallel_for(0, units, kGrain / align, [&](int64_t begin, int64_t end) {
    f(begin * align, end * align < numel ? end * align : numel);
  });
}

}  // namespace ste_ops
