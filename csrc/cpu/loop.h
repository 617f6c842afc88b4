// What the CPU loops share: run-time multi-versioning and the grain of a parallel loop.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "cpu/capability.h"

// One function body, compiled for AVX-512, AVX2 and the baseline; the loader picks the best that the processor has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STE_OPS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define STE_OPS_CLONES
#endif

#define STE_OPS_INLINE inline __attribute__((always_inline))

// For loops that are written once for AVX-512 and once for the rest. Left alone the compiler takes half registers.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define STE_OPS_AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define STE_OPS_AVX512_INLINE STE_OPS_AVX512 STE_OPS_INLINE
#define STE_OPS_AVX2 __attribute__((target("arch=x86-64-v3")))
#define STE_OPS_BELOW_AVX512 __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define STE_OPS_BELOW_AVX512
#endif

namespace ste_ops {

#ifdef STE_OPS_AVX512
inline bool has_avx512() {
  static const bool has = chosen_capability().level == Capability::avx512;
  return has;
}
#endif

// Elements a thread takes at least, a fifth of a millisecond of a copy: a second thread that comes late costs more
// than it brings (docs/decisions/threads.md).
constexpr int64_t kGrain = int64_t(1) << 19;

// Elements whose results are joined in a fixed order, whoever computes them.
constexpr int64_t kPart = 32768;

// Calls f(begin, end) over [0, numel), at least `grain` a thread, with every boundary but the last a multiple of
// `align`, so that threads never share a byte of a mask.
template <class F>
void parallel_aligned(int64_t numel, int64_t align, const F& f) {
  int64_t units = (numel + align - 1) / align;
  torch::stable::parallel_for(0, units, kGrain / align, [&](int64_t begin, int64_t end) {
    f(begin * align, end * align < numel ? end * align : numel);
  });
}

// Calls f(i) for i in [begin, end). The functor reads and writes through pointers of its own, none into another's
// output.
template <class F>
STE_OPS_BELOW_AVX512 void each_below_avx512(F f, int64_t begin, int64_t end) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) f(i);
}

#ifdef STE_OPS_AVX512
template <class F>
STE_OPS_AVX512 void each_avx512(F f, int64_t begin, int64_t end) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) f(i);
}
#endif

template <class F>
void each(F f, int64_t begin, int64_t end) {
#ifdef STE_OPS_AVX512
  if (has_avx512()) return each_avx512(f, begin, end);
#endif
  each_below_avx512(f, begin, end);
}

// Calls f(), compiled for the level: what it does stands in an operator() that is always inlined.
template <class F>
void run_plain(const F& f) {
  f();
}

#ifdef STE_OPS_AVX512
template <class F>
STE_OPS_AVX2 void run_avx2(const F& f) {
  f();
}

template <class F>
STE_OPS_AVX512 void run_avx512(const F& f) {
  f();
}
#endif

template <class F>
void run_at(Capability level, const F& f) {
#ifdef STE_OPS_AVX512
  if (level == Capability::avx512) return run_avx512(f);
  if (level == Capability::avx2) return run_avx2(f);
#endif
  run_plain(f);
}

}  // namespace ste_ops
