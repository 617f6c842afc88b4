// Kernels that are right and kernels with a planted mistake, for test_kernels.py. Compiles with nvcc too, up to
// the launches at the end.
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/block.cuh"

namespace samples {

using namespace ste_ops;

// Right.

template <class T>
__global__ void sum_kernel(const T* x, int64_t n, T* of_block) {
  T sum = 0;
  for (int64_t i = grid_index(); i < n; i += grid_stride()) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) of_block[blockIdx.x] = sum;
}

struct Largest {
  float value;
  unsigned index;
};

struct Larger {
  __device__ Largest operator()(Largest a, Largest b) const {
    return a.value > b.value || (a.value == b.value && a.index < b.index) ? a : b;
  }
};

__global__ void largest_kernel(const float* x, int64_t n, int64_t* index) {
  Largest mine{-1e30f, 0};
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) mine = Larger()(mine, Largest{x[i], unsigned(i)});
  mine = block_reduce(mine, Larger(), Largest{-1e30f, 0});
  if (threadIdx.x == 0) *index = mine.index;
}

__global__ void scan_kernel(const uint64_t* x, int64_t n, uint64_t* sums) {
  uint64_t carry = 0;
  for (int64_t start = 0; start < n; start += blockDim.x) {
    int64_t i = start + threadIdx.x;
    uint64_t total;
    uint64_t sum = block_inclusive_scan(i < n ? x[i] : uint64_t(0), total);
    if (i < n) sums[i] = carry + sum;
    carry += total;
  }
}

__global__ void compact_kernel(const int* x, int64_t n, int* positive, int* count) {
  int64_t i = grid_index();
  bool keep = i < n && x[i] > 0;
  unsigned kept = __ballot_sync(kFullWarp, keep);
  int start = 0;
  if (lane_index() == 0) start = atomicAdd(count, __popc(kept));
  start = __shfl_sync(kFullWarp, start, 0);
  if (keep) positive[start + __popc(kept & ((1u << lane_index()) - 1))] = x[i];
}

// Threads beyond the end return before the barriers, which the others then share.
__global__ void early_return_kernel(const float* x, int64_t n, float* reversed) {
  float* tile = dynamic_shared<float>();
  if (threadIdx.x >= n) return;
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  reversed[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

// Each round hands the values one thread on.
__global__ void rotate_kernel(int* x, int rounds) {
  __shared__ int tile[1024];
  for (int round = 0; round < rounds; ++round) {
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
}

// Every lane's result of each warp operation, for comparison with the definitions.
__global__ void exchanges_kernel(const int* x, int width, int argument, int* results) {
  int lane = threadIdx.x, value = x[lane];
  results[lane] = __shfl_sync(kFullWarp, value, argument, width);
  results[32 + lane] = __shfl_up_sync(kFullWarp, value, argument, width);
  results[64 + lane] = __shfl_down_sync(kFullWarp, value, argument, width);
  results[96 + lane] = __shfl_xor_sync(kFullWarp, value, argument, width);
  results[128 + lane] = __any_sync(kFullWarp, value > 90);
  results[160 + lane] = __all_sync(kFullWarp, value >= 0);
  unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  results[192 + lane] = int(__ballot_sync(half, value % 2));
}

__global__ void saxpy_kernel(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = grid_index(); i < n; i += grid_stride()) y[i] += a * x[i];
}

__global__ void grid_kernel(int* columns_and_rows) {
  if (threadIdx.x == 0)
    atomicMax(columns_and_rows + blockIdx.y * gridDim.x + blockIdx.x, int(blockIdx.y * 100 + blockIdx.x));
}

// Wrong.

__global__ void missing_barrier_kernel(const int* x, int* reversed) {
  __shared__ int tile[1024];
  tile[threadIdx.x] = x[threadIdx.x];
  reversed[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void missing_second_barrier_kernel(int* x, int rounds) {
  __shared__ int tile[1024];
  for (int round = 0; round < rounds; ++round) {
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
  }
}

__global__ void missing_warp_barrier_kernel(const int* x, int* reversed) {
  __shared__ int tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  reversed[threadIdx.x] = tile[31 - threadIdx.x];
}

__global__ void skipped_barrier_kernel() {
  if (threadIdx.x < 40) __syncthreads();
  __shfl_sync(kFullWarp, 1, 0);
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void absent_lanes_kernel() {
  if (threadIdx.x < 16) __shfl_sync(kFullWarp, 1, 0);
  __syncthreads();
}

__global__ void foreign_mask_kernel() { __shfl_sync(0x0000ffffu, 1, 0); }

__global__ void uninitialized_shared_kernel(float* out) {
  __shared__ float accumulated[64];
  accumulated[threadIdx.x] += 1;
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = accumulated[threadIdx.x];
}

__global__ void returned_lane_kernel(float* out) {
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_down_sync(kFullWarp, 1.0f, 1);
}

__global__ void overrun_kernel(int index) {
  dynamic_shared<float>()[index] = 0;
  __syncthreads();
}

__global__ void index_kernel(int index, int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + index];
}

__global__ void misaligned_kernel(const float* x, float4* out) {
  out[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
}

// Wrong without giving a wrong result on the emulator: for the checker.

// Every thread writes the same value, so that no order shows it.
__global__ void same_value_kernel(int* out) {
  __shared__ int flag;
  flag = 1;
  __syncthreads();
  out[threadIdx.x] = flag;
}

__global__ void neighbours_kernel(int* out, int step) {
  __shared__ unsigned char bytes[1024];
  bytes[threadIdx.x] = 1;
  __syncthreads();
  bytes[threadIdx.x * step / 2] = 2;
  out[threadIdx.x] = bytes[threadIdx.x];
}

// Lane after lane takes what the warp wrote: once ordered by __syncwarp, once by a shuffle, which orders no memory.
__global__ void warp_exchange_kernel(const int* x, int* out, bool ordered) {
  __shared__ int tile[32];
  for (int round = 0; round < 3; ++round) {
    tile[threadIdx.x] = x[threadIdx.x] + round;
    ordered ? __syncwarp() : void(__shfl_sync(kFullWarp, 1, 0));
    out[threadIdx.x] = tile[31 - threadIdx.x];
    __syncwarp();
  }
}

// The counts of all threads, by atomics; then read, with the barrier or without.
__global__ void histogram_kernel(const int* x, int* counts, bool barrier) {
  __shared__ int count[4];
  if (threadIdx.x < 4) count[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&count[x[threadIdx.x] % 4], 1);
  if (barrier) __syncthreads();
  if (threadIdx.x < 4) counts[threadIdx.x] = count[threadIdx.x];
}

// Blocks that add to one word, by an atomic or not.
__global__ void total_kernel(const int* x, int* total, bool atomic) {
  int sum = block_sum(x[grid_index()]);
  if (threadIdx.x != 0) return;
  if (atomic) {
    atomicAdd(total, sum);
  } else {
    *total += sum;
  }
}

// Block b writes where block b + 1 reads.
__global__ void shift_kernel(int* x) {
  if (threadIdx.x == 0) x[blockIdx.x] = x[blockIdx.x + 1];
}

__global__ void copy_kernel(const int* x, int* out, int64_t n) {
  int64_t i = grid_index();
  if (i < n) out[i] = x[i];
}

// Eight lanes read a byte together.
__global__ void mask_kernel(const unsigned char* mask, int* out) {
  out[threadIdx.x] = mask[threadIdx.x / 8] >> threadIdx.x % 8 & 1;
}

// Right but slow, where its line holds for one pass: for the counter. Every pass asks for all of x anew.
// Moves: reads n * T, writes blocks * T.
template <class T>
__global__ void passes_kernel(const T* x, int64_t n, int passes, T* of_block) {
  T sum = 0;
  for (int pass = 0; pass < passes; ++pass) {
    for (int64_t i = grid_index(); i < n; i += grid_stride()) sum += x[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) of_block[blockIdx.x] = sum;
}

// The same where the second look is another instruction, in another warp.
// Moves: reads n * T, writes n * T.
template <class T>
__global__ void reversed_sum_kernel(const T* x, int64_t n, T* sums) {
  for (int64_t i = grid_index(); i < n; i += grid_stride()) sums[i] = x[i] + x[n - 1 - i];
}

__global__ void barrier_after_return_kernel() {
  if (threadIdx.x >= 40) return;
  __syncthreads();
}

__global__ void ballot_after_return_kernel() {
  if (threadIdx.x >= 16) return;
  __ballot_sync(kFullWarp, 1);
}

__global__ void unnamed_lane_kernel(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, 1, 4);
}

__global__ void read_past_shared_kernel(int* out, int index) {
  int* tile = dynamic_shared<int>();
  tile[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + index];
}

__global__ void host_atomics_kernel(unsigned long long* claimed, int threads) {
  if (int(threadIdx.x) < threads) atomicCAS_system(claimed, 0ull, 1ull);
}

#ifdef STE_OPS_EMULATED
__global__ void throwing_kernel() {
  if (threadIdx.x == 33) throw std::invalid_argument("thrown by thread 33");
  __syncthreads();
}
#endif

}  // namespace samples

#ifdef STE_OPS_EMULATED

namespace {

struct Shape {
  int blocks_x, blocks_y, threads, shared_bytes;
};

template <class T>
T argument(int64_t bits) {
  if constexpr (std::is_pointer<T>::value) {
    return reinterpret_cast<T>(bits);
  } else {
    return T(bits);
  }
}

template <auto kernel>
struct Call;

template <class... Parameters, void (*kernel)(Parameters...)>
struct Call<kernel> {
  static void run(const Shape& shape, const int64_t* arguments) {
    run(shape, arguments, std::index_sequence_for<Parameters...>());
  }
  template <size_t... i>
  static void run(const Shape& shape, const int64_t* arguments, std::index_sequence<i...>) {
    emulator::launch(
        "test", kernel, unsigned(shape.blocks_x), unsigned(shape.blocks_y), shape.threads, size_t(shape.shared_bytes),
        argument<Parameters>(arguments[i])...);
  }
};

using namespace samples;

const std::map<std::string, void (*)(const Shape&, const int64_t*)> kernels = {
    {"sum_float64", Call<sum_kernel<double>>::run},
    {"sum_uint64", Call<sum_kernel<uint64_t>>::run},
    {"largest", Call<largest_kernel>::run},
    {"scan", Call<scan_kernel>::run},
    {"compact", Call<compact_kernel>::run},
    {"early_return", Call<early_return_kernel>::run},
    {"rotate", Call<rotate_kernel>::run},
    {"exchanges", Call<exchanges_kernel>::run},
    {"saxpy", Call<saxpy_kernel>::run},
    {"grid", Call<grid_kernel>::run},
    {"missing_barrier", Call<missing_barrier_kernel>::run},
    {"missing_second_barrier", Call<missing_second_barrier_kernel>::run},
    {"missing_warp_barrier", Call<missing_warp_barrier_kernel>::run},
    {"skipped_barrier", Call<skipped_barrier_kernel>::run},
    {"divergent_barrier", Call<divergent_barrier_kernel>::run},
    {"absent_lanes", Call<absent_lanes_kernel>::run},
    {"foreign_mask", Call<foreign_mask_kernel>::run},
    {"uninitialized_shared", Call<uninitialized_shared_kernel>::run},
    {"returned_lane", Call<returned_lane_kernel>::run},
    {"overrun", Call<overrun_kernel>::run},
    {"index", Call<index_kernel>::run},
    {"misaligned", Call<misaligned_kernel>::run},
    {"same_value", Call<same_value_kernel>::run},
    {"neighbours", Call<neighbours_kernel>::run},
    {"warp_exchange", Call<warp_exchange_kernel>::run},
    {"histogram", Call<histogram_kernel>::run},
    {"total", Call<total_kernel>::run},
    {"shift", Call<shift_kernel>::run},
    {"copy", Call<copy_kernel>::run},
    {"mask", Call<mask_kernel>::run},
    {"passes", Call<passes_kernel<float>>::run},
    {"reversed_sum", Call<reversed_sum_kernel<float>>::run},
    {"barrier_after_return", Call<barrier_after_return_kernel>::run},
    {"ballot_after_return", Call<ballot_after_return_kernel>::run},
    {"unnamed_lane", Call<unnamed_lane_kernel>::run},
    {"read_past_shared", Call<read_past_shared_kernel>::run},
    {"throwing", Call<throwing_kernel>::run},
    {"host_atomics", Call<host_atomics_kernel>::run},
};

}  // namespace

// Returns the error, or the empty string.
extern "C" __attribute__((visibility("default"))) const char* launch(
    const char* name, const Shape* shape, const int64_t* arguments) {
  static std::string error;
  error.clear();
  try {
    kernels.at(name)(*shape, arguments);
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}

#endif
