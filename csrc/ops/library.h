// Registration of schemas and kernels. Compiled with STE_OPS_EMULATED the CUDA sources register as CPU kernels under a
// namespace of their own, so that the test suite can run them on a machine without a GPU (tests/emulator).
#pragma once

#include <torch/csrc/stable/library.h>

#ifdef STE_OPS_EMULATED
#define STE_OPS_NAMESPACE ste_ops_emulated
#define STE_OPS_CUDA_KEY CPU
#else
#define STE_OPS_NAMESPACE ste_ops
#define STE_OPS_CUDA_KEY CUDA
#endif

// The indirection expands the namespace before torch's macros paste it.
#define STE_OPS_EXPAND_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define STE_OPS_EXPAND_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

#define STE_OPS_LIBRARY(m) STE_OPS_EXPAND_LIBRARY(STE_OPS_NAMESPACE, m)
#define STE_OPS_CPU_IMPL(m) STE_OPS_EXPAND_IMPL(STE_OPS_NAMESPACE, CPU, m)
#define STE_OPS_CUDA_IMPL(m) STE_OPS_EXPAND_IMPL(STE_OPS_NAMESPACE, STE_OPS_CUDA_KEY, m)
// For operators without a tensor argument.
#define STE_OPS_ANY_DEVICE_IMPL(m) STE_OPS_EXPAND_IMPL(STE_OPS_NAMESPACE, CompositeExplicitAutograd, m)
