// Markers that let one function serve the CPU loops, the CUDA kernels and the unit tests.
#pragma once

#ifdef __CUDACC__
#define STE_HD __host__ __device__ inline
#else
#define STE_HD inline
#endif

// Before a loop of a few registers: left alone, g++ unrolls it whole before it looks for loops to vectorize. A GPU has
// it unrolled, for its arrays to be registers.
#if defined(__CUDACC__)
#define STE_LANES _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__clang__)
#define STE_LANES _Pragma("GCC unroll 1")
#else
#define STE_LANES
#endif
