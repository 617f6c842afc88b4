// Markers that let one function serve the CPU loops, the CUDA kernels and the unit tests.
#pragma once

#ifdef __CUDACC__
#define STE_HD __host__ __device__ inline
#else
#define STE_HD inline
#endif
