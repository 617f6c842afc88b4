#include "cuda/sampling/deferred.cuh"

#include <mutex>
#include <set>
#include <string>

#include "cuda/sampling/tiles.cuh"
#include "ops/library.h"
#include "ops/sampling/row_states.h"

namespace ste_ops {
namespace {

constexpr int kMostDevices = 64;

#ifdef STE_OPS_EMULATED

DeferredRecord* allocate_records() {
  return static_cast<DeferredRecord*>(emulator::pinned_memory(kMostDevices * sizeof(DeferredRecord)));
}

#else

// Pinned memory has one address for the host and every device (unified virtual addressing). A stream may be under
// capture when the first operator comes here; relaxed, the capture goes on, as in torch's own allocator.
DeferredRecord* allocate_records() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  STD_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  void* memory = nullptr;
  cudaError_t error =
      cudaHostAlloc(&memory, kMostDevices * sizeof(DeferredRecord), cudaHostAllocPortable | cudaHostAllocMapped);
  STD_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  STD_CUDA_CHECK(error);
  memset(memory, 0, kMostDevices * sizeof(DeferredRecord));
  return static_cast<DeferredRecord*>(memory);
}

#endif

// One thread looks for the first row that is at fault.
__device__ int64_t first_fault(int64_t rows, const int64_t* states) {
  for (int64_t row = 0; row < rows; ++row) {
    if (states[row] <= 0) return row;
  }
  return -1;
}

// One block: copies the states, and reports the first row at fault.
// Moves: reads 8 * rows, writes 8 * rows.
template <class T>
__global__ void report_states_kernel(
    int64_t rows, int64_t n, bool one_row, const bits_t<T>* weights, const int64_t* states, int64_t* out,
    DeferredErrors errors) {
  bool fault = false;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    out[row] = states[row];
    fault |= states[row] <= 0;
  }
  fault = block_sum(int(fault)) != 0;
  if (!fault || threadIdx.x != 0) return;
  int64_t row = first_fault(rows, states), state = states[row];
  double value = state < 0 ? double(load(bit_cast<T>(weights[row * n - 1 - state]))) : 0.0;
  errors.report(fault_of_state(state, one_row ? -1 : row, value));
}

Tensor refuse_states_cuda(Tensor weights, Tensor states, std::string op) {
  Launcher launch(weights);
  DeferredErrors errors(weights, permanent(op));
  return refuse_states(
      weights, states,
      [&](auto type, const auto* weights, int64_t rows, int64_t n, bool one_row, const int64_t* states, int64_t* out) {
        using T = typename decltype(type)::type;
        launch(report_states_kernel<T>, 1, kSamplingThreads, rows, n, one_row, weights, states, out, errors);
      });
}

void raise_deferred_cuda(Tensor on) { raise_deferred_errors(on); }

}  // namespace

DeferredRecord* deferred_record(const Tensor& on) {
  static DeferredRecord* const records = allocate_records();
  int32_t index = on.get_device_index();
  STD_TORCH_CHECK(index < kMostDevices, "deferred errors: at most ", kMostDevices, " devices, got device ", index);
  return records + (index < 0 ? 0 : index);
}

const char* permanent(const std::string& name) {
  static std::mutex mutex;
  static std::set<std::string> names;
  std::lock_guard<std::mutex> lock(mutex);
  return names.insert(name).first->c_str();
}

void raise_deferred_errors(const Tensor& on) {
  DeferredRecord* record = deferred_record(on);
  // Of several threads one raises.
  if (__atomic_load_n(&record->ready, __ATOMIC_ACQUIRE) == 0) return;
  if (__atomic_exchange_n(&record->ready, 0ull, __ATOMIC_ACQ_REL) == 0) return;
  const std::string op = record->op;
  const Fault fault = record->fault;
  __atomic_store_n(&record->claimed, 0ull, __ATOMIC_RELEASE);
  throw std::runtime_error(words(op, fault) + " (in an earlier call on this device, for which the host did not wait)");
}

STE_OPS_CUDA_IMPL(m) {
  m.impl("refuse_states", TORCH_BOX(&refuse_states_cuda));
  m.impl("raise_deferred", TORCH_BOX(&raise_deferred_cuda));
}

}  // namespace ste_ops
