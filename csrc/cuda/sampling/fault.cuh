// The faults that a kernel finds while the host is far ahead. A kernel writes the first one into a record of its
// device, which lies in pinned memory that host and device share; the host reads that without a call to the device, so
// that a later operator raises it without waiting, also where a CUDA graph replays the kernel.
//
//   DeferredErrors errors(weights, "multinomial");  // in the launcher; raises what an earlier call has left
//   launch(kernel, blocks, threads, ..., errors);
//   if (!is_weight<T>(w)) errors.report(Fault::weight(row, i, load(...)));  // in the kernel
#pragma once

#include <string>

#include "cuda/sampling/tiles.cuh"
#include "ops/sampling/fault.h"

namespace ste_ops {

struct DeferredRecord {
  // 1 from when a kernel takes the record until the host has read it, else 0.
  unsigned long long claimed;
  // The operator's name, in the host's memory.
  const char* op;
  Fault fault;
  // 1 once what stands above is whole.
  unsigned long long ready;
};

// The record of the tensor's device.
DeferredRecord* deferred_record(const torch::stable::Tensor& on);

// A copy of the name that stays.
const char* permanent(const std::string& name);

// Raises what an earlier call has left on the tensor's device, if the device has come to it, and forgets it.
void raise_deferred_errors(const torch::stable::Tensor& on);

struct DeferredErrors {
  DeferredRecord* record;
  const char* op;  // only the host reads the letters

  DeferredErrors(const torch::stable::Tensor& on, const char* op) : record(deferred_record(on)), op(op) {
    raise_deferred_errors(on);
  }

  __device__ void report(const Fault& fault) const {
    if (atomicCAS_system(&record->claimed, 0ull, 1ull) != 0) return;  // the host writes it too
    record->op = op;
    record->fault = fault;
    __threadfence_system();
    *static_cast<volatile unsigned long long*>(&record->ready) = 1;
  }
};

// For a kernel in which every element may be at fault: only the first fault of a block goes the long way to the host's
// memory. All threads of the block make it.
class BlockErrors {
 public:
  __device__ explicit BlockErrors(const DeferredErrors& errors) : errors_(errors) {
    if (threadIdx.x == 0) reported() = 0;
    __syncthreads();
  }

  __device__ void report(const Fault& fault) const {
    if (atomicExch(&reported(), 1u) == 0) errors_.report(fault);
  }

 private:
  __device__ static unsigned& reported() {
    __shared__ unsigned flag;
    return flag;
  }

  const DeferredErrors& errors_;
};

// A block searches all rows; its first thread gets the first row for which at_fault(row) holds, -1 where there is none.
// The other threads get -1.
template <class F>
__device__ int64_t first_fault(int64_t rows, F at_fault) {
  uint64_t first = 0;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    if (at_fault(row)) first = Greater()(first, uint64_t(rows - row));
  }
  first = block_reduce(first, Greater(), uint64_t(0));
  return first == 0 || threadIdx.x != 0 ? -1 : rows - int64_t(first);
}

}  // namespace ste_ops
