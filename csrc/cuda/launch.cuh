// The one way a kernel is launched, on a device or, compiled with STE_OPS_EMULATED, on the CPU (tests/emulator).
//
//   Launcher launch(x);                                   // x's device and its current stream
//   launch(heaviside_kernel<float>, blocks, 256, pointer, n);
//   launch.shared(scan_kernel, {columns, rows}, 256, shared_bytes, pointer, n);
//
// Before each kernel stands what a launch of it must move: the distinct bytes of global memory that it reads and those
// that it writes. tests/cuda/test_bytes.py reads these lines and compares them with what the emulator counts.
//
//   // Moves: reads n * T + n / 8, writes n * T.
//   // Moves: reads rows * n * T (again all), writes rows * n * T.
//   // Moves (nothing to do): reads 8, writes 0.
//   // Moves: reads at most 8 * draws, writes 8 * draws; an entry lies in a sector of its own.
//   // Moves: no fixed number: a walk from the root to a leaf for each draw.
//
// n are elements, in a row where there are rows, of all gradients where a launch takes many; a type is the bytes of
// one, a reduction those of one of its totals, and one that has a Moves line itself (what a reduction adds, say) is
// what stands there. A division rounds up.
// `again`: how many of the bytes are asked for a second time, by another instruction or another warp, which a cache
// should answer; none where nothing is said. Words that many threads share (a seed, a scale) stand once and are not
// counted as asked for again. A line in brackets is for launches of another kind; what follows a semicolon is for the
// reader.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdint>

#include <optional>

#include "cuda/block.cuh"
#include "cuda/runtime.cuh"
#include "ops/check.h"

namespace ste_ops {

// Blocks of a grid, in one or two dimensions.
struct Grid {
  int64_t x;
  int64_t y;
  Grid(int64_t x, int64_t y = 1) : x(x), y(y) {}
};

inline int64_t blocks_for(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

#ifdef STE_OPS_EMULATED

struct LaunchDevice {
  explicit LaunchDevice(const torch::stable::Tensor&) {}
  bool is_cuda() const { return true; }
  int multiprocessors() const { return 3; }
};

#else

// The tensor's device, the current one for as long as this lives, and its current stream. A tensor that lies on the CPU
// (index -1), where another argument brought the call here, has neither: the operator's checks name it, and they come
// later.
struct LaunchDevice {
  int32_t index;
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  cudaStream_t stream = nullptr;

  explicit LaunchDevice(const torch::stable::Tensor& tensor) : index(tensor.get_device_index()) {
    if (!is_cuda()) return;
    guard.emplace(index);
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<cudaStream_t>(current);
  }

  bool is_cuda() const { return index >= 0; }

  int multiprocessors() const {
    static std::atomic<int> cached[64];
    std::atomic<int>& count = cached[index % 64];
    if (count == 0) {
      int value = 0;
      check_runtime(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, index));
      count = value;
    }
    return count;
  }
};

#endif

class Launcher {
 public:
  // `caller`, by default the function that makes the launcher, is named in errors.
  explicit Launcher(const torch::stable::Tensor& tensor, const char* caller = __builtin_FUNCTION())
      : device_(tensor), caller_(caller) {}

  // Nothing happens where the grid is empty. Arguments convert to the kernel's parameters.
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), Grid grid, int threads, Arguments... arguments) const {
    shared(kernel, grid, threads, 0, arguments...);
  }

  // With dynamic shared memory, which the kernel finds through dynamic_shared<T>().
  template <class... Parameters, class... Arguments>
  void shared(
      void (*kernel)(Parameters...), Grid grid, int threads, int64_t shared_bytes, Arguments... arguments) const {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
    if (grid.x == 0 || grid.y == 0) return;
    refuse_cpu();
    STE_CHECK(
        grid.x > 0 && grid.x <= INT32_MAX && grid.y > 0 && grid.y <= 65535, caller_,
        ": a grid has at most 2147483647 x 65535 blocks, got ", grid.x, " x ", grid.y);
    STE_CHECK(
        threads > 0 && threads <= 1024 && threads % kWarpSize == 0, caller_,
        ": a block has a multiple of 32 threads, at most 1024, got ", threads);
#ifdef STE_OPS_EMULATED
    emulator::launch(caller_, kernel, unsigned(grid.x), unsigned(grid.y), threads, size_t(shared_bytes), arguments...);
#else
    if (shared_bytes > 48 * 1024) {  // more than a device grants unasked
      check_runtime(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
    }
    dim3 blocks(unsigned(grid.x), unsigned(grid.y));
    kernel<<<blocks, threads, size_t(shared_bytes), device_.stream>>>(static_cast<Parameters>(arguments)...);
#endif
    check_runtime(cudaGetLastError());
  }

  // How many the device has, to size a grid that strides over its work.
  int multiprocessors() const {
    refuse_cpu();
    return device_.multiprocessors();
  }

 private:
  void refuse_cpu() const {
    STE_CHECK(device_.is_cuda(), caller_, ": tensors must be on one CUDA device, got one on the CPU");
  }

  LaunchDevice device_;
  const char* caller_;
};

}  // namespace ste_ops
