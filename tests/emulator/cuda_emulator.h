// CUDA's device language for the host compiler: with this header a .cu source is plain C++ that runs on the CPU, each
// CUDA thread on a fiber (engine.cpp). It has what the kernels of csrc/cuda may use and no more.
//
// What it is strict about: every thread that has not returned must reach the same __syncthreads, every lane named in a
// mask must reach the same warp operation, shared memory holds garbage when a block starts, and warps and lanes run in
// a shuffled order, each as far as it can, so that a missing barrier gives wrong results. The order is fixed by
// STE_OPS_EMULATED_ORDER: "forward", "reverse", or a number that seeds the shuffle (default 1).
// What it cannot show: a block that waits for another one (blocks run one after the other), memory order between
// blocks, and speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

// Exported, so that an error can name the kernel.
#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __constant__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

using cudaStream_t = struct CUstream_st*;

// Vector types with the alignment that a device faults on.
#define EMULATOR_VECTORS(type, name, align2, align4)                          \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned int, uint, 8, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef EMULATOR_VECTORS

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// __thread rather than thread_local: no wrapper that checks for an initializer.
extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

// Where a thread waits.
struct Site {
  const char* operation;
  const char* file;
  int line;
  const char* function;
};

enum class Exchange { kShuffle, kUp, kDown, kXor, kBallot, kAny, kAll, kSync };

struct Launch {
  void (*body)(void*);
  void* arguments;
  size_t arguments_bytes;
  const void* kernel;
  const char* caller;
  unsigned grid_x, grid_y;
  int threads;
  size_t shared_bytes;
};

// Returns when every block has run; throws what a kernel threw, or what it did wrong.
void run(const Launch& launch);
void barrier(const Site& site);
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, const Site& site);
void* dynamic_shared_memory();
// Zeros that kernels may touch, for good: cudaHostAlloc.
void* pinned_memory(size_t bytes);
[[noreturn]] void trap(const Site& site);
void note_system_atomic(const Site& site);
void note_atomic(const void* address, size_t bytes, const void* return_address);

template <class... Parameters, class... Arguments>
void launch(
    const char* caller, void (*kernel)(Parameters...), unsigned grid_x, unsigned grid_y, int threads,
    size_t shared_bytes, Arguments... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  Call call{kernel, {static_cast<Parameters>(arguments)...}};
  auto body = [](void* data) {
    auto& call = *static_cast<Call*>(data);
    std::apply(call.kernel, call.arguments);
  };
  run(
      {body, &call, sizeof(call), reinterpret_cast<const void*>(kernel), caller, grid_x, grid_y, threads,
       shared_bytes});
}

template <class T>
T exchange_value(Exchange kind, unsigned mask, T value, int argument, int width, const Site& site) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange(kind, mask, bits, argument, width, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

// As default arguments these are the call's own place.
#define EMULATOR_HERE \
  const char *file = __builtin_FILE(), int line = __builtin_LINE(), const char *function = __builtin_FUNCTION()
#define EMULATOR_SITE(operation) \
  emulator::Site { operation, file, line, function }

inline void __syncthreads(EMULATOR_HERE) { emulator::barrier(EMULATOR_SITE("__syncthreads")); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_HERE) {
  emulator::exchange(emulator::Exchange::kSync, mask, 0, 0, warpSize, EMULATOR_SITE("__syncwarp"));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return unsigned(emulator::exchange(
      emulator::Exchange::kBallot, mask, predicate != 0, 0, warpSize, EMULATOR_SITE("__ballot_sync")));
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return int(
      emulator::exchange(emulator::Exchange::kAny, mask, predicate != 0, 0, warpSize, EMULATOR_SITE("__any_sync")));
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return int(
      emulator::exchange(emulator::Exchange::kAll, mask, predicate != 0, 0, warpSize, EMULATOR_SITE("__all_sync")));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, EMULATOR_HERE) {
  return emulator::exchange_value(emulator::Exchange::kShuffle, mask, value, lane, width, EMULATOR_SITE("__shfl_sync"));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
  return emulator::exchange_value(
      emulator::Exchange::kUp, mask, value, int(delta), width, EMULATOR_SITE("__shfl_up_sync"));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
  return emulator::exchange_value(
      emulator::Exchange::kDown, mask, value, int(delta), width, EMULATOR_SITE("__shfl_down_sync"));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, EMULATOR_HERE) {
  return emulator::exchange_value(
      emulator::Exchange::kXor, mask, value, lanes, width, EMULATOR_SITE("__shfl_xor_sync"));
}
[[noreturn]] inline void __trap(EMULATOR_HERE) { emulator::trap(EMULATOR_SITE("__trap")); }

#include "intrinsics.h"
#include "runtime.h"

// What the host sees too lies in its memory, where an atomic takes a microsecond and all wait for each other: a block
// may do one.
inline unsigned long long atomicCAS_system(
    unsigned long long* address, unsigned long long compare, unsigned long long value, EMULATOR_HERE) {
  emulator::note_system_atomic(EMULATOR_SITE("atomicCAS_system"));
  return atomicCAS(address, compare, value);
}

#undef EMULATOR_HERE
#undef EMULATOR_SITE
