// The CUDA runtime, which is linked into this library: torch has one of its own.
#pragma once

#include <torch/csrc/stable/macros.h>

#ifdef STE_OPS_EMULATED
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>
#ifndef USE_CUDA
#error "compile with -DUSE_CUDA: torch's shim.h declares aoti_torch_get_current_cuda_stream only under it"
#endif
#endif

namespace ste_ops {

// Raises an error. The runtime keeps it until somebody asks, which torch cannot do, so it is asked for here; else the
// next good launch would raise it.
inline void check_runtime(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
#ifdef STE_OPS_EMULATED
  emulator::raise(error);
#else
  STD_CUDA_CHECK(error);
#endif
}

}  // namespace ste_ops
