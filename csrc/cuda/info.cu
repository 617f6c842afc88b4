// What the CUDA library was compiled with.
#include <sstream>
#include <string>

#include "cuda/launch.cuh"
#include "ops/library.h"

namespace {

// "key=value" lines, as build_info of registration.cpp.
std::string cuda_build_info() {
  std::ostringstream info;
#ifdef STE_OPS_EMULATED
  info << "cuda=emulated\narchs=none";
#else
#define STE_OPS_TEXT_OF(...) #__VA_ARGS__
#define STE_OPS_TEXT(...) STE_OPS_TEXT_OF(__VA_ARGS__)
  info << "cuda=" << CUDART_VERSION / 1000 << '.' << CUDART_VERSION % 1000 / 10 << '\n';
  info << "archs=" << STE_OPS_TEXT(STE_OPS_CUDA_ARCHS);
#endif
  return info.str();
}

}  // namespace

STE_OPS_ANY_DEVICE_IMPL(m) { m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info)); }
