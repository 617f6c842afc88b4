// The records of faults: their memory, and the errors that are raised from them.
#include "cuda/sampling/fault.cuh"

#include <atomic>
#include <mutex>
#include <set>

#include "ops/dispatch.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kMostDevices = 64;

// Pinned memory has one address for the host and every device (unified virtual addressing). A stream may be under
// capture when the first operator comes here; relaxed, the capture goes on, as in torch's own allocator.
DeferredRecord* allocate_records() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check_runtime(cudaThreadExchangeStreamCaptureMode(&mode));
  void* memory = nullptr;
  cudaError_t error =
      cudaHostAlloc(&memory, kMostDevices * sizeof(DeferredRecord), cudaHostAllocPortable | cudaHostAllocMapped);
  check_runtime(cudaThreadExchangeStreamCaptureMode(&mode));
  check_runtime(error);
  memset(memory, 0, kMostDevices * sizeof(DeferredRecord));
  return static_cast<DeferredRecord*>(memory);
}

// Null until an operator that reports has been called.
std::atomic<DeferredRecord*> allocated{nullptr};

// Without a launcher, and without opening a context: where no operator has been called there is nothing to raise.
void raise_deferred_cuda(Tensor on) {
  if (allocated.load(std::memory_order_acquire) != nullptr) raise_deferred_errors(on);
}

}  // namespace

DeferredRecord* deferred_record(const Tensor& on) {
  static DeferredRecord* const records = [] {
    DeferredRecord* memory = allocate_records();
    allocated.store(memory, std::memory_order_release);
    return memory;
  }();
  int32_t index = on.get_device_index();
  STE_CHECK(index < kMostDevices, "deferred errors: at most ", kMostDevices, " devices, got device ", index);
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
  // Only one of several threads raises.
  if (__atomic_load_n(&record->ready, __ATOMIC_ACQUIRE) == 0) return;
  if (__atomic_exchange_n(&record->ready, 0ull, __ATOMIC_ACQ_REL) == 0) return;
  const std::string op = record->op;
  const Fault fault = record->fault;
  __atomic_store_n(&record->claimed, 0ull, __ATOMIC_RELEASE);
  throw std::runtime_error(words(op, fault) + " (in an earlier call on this device, for which the host did not wait)");
}

STE_OPS_CUDA_IMPL(m) { m.impl("raise_deferred", TORCH_BOX(&raise_deferred_cuda)); }

}  // namespace ste_ops
