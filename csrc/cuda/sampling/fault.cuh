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
#include "ops/layout.h"
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

// Of the rows that this block searches the first for which at_fault(row) holds, as rows - row; 0 where there is none.
template <class AtFault>
__device__ uint64_t first_fault(int64_t rows, const AtFault& at_fault) {
  uint64_t first = 0;
  for (int64_t row = grid_index(); row < rows; row += grid_stride()) {
    if (at_fault(row)) first = Greater()(first, uint64_t(rows - row));
  }
  return block_reduce(first, Greater(), uint64_t(0));
}

// Moves: reads AtFault, writes AtFault + 8 * searchers.
template <class AtFault>
__global__ void search_rows_kernel(int64_t rows, AtFault at_fault, uint64_t* of_blocks) {
  const uint64_t first = first_fault(rows, at_fault);
  if (threadIdx.x == 0) of_blocks[blockIdx.x] = first;
}

// One block: reports the first row at fault. It searches itself where nobody has, which `searchers` of 0 says.
// Moves: reads AtFault, writes AtFault.
// Moves (many rows): reads 8 * searchers, writes 0.
template <class AtFault, class Report>
__global__ void report_rows_kernel(
    int64_t rows, AtFault at_fault, const uint64_t* of_blocks, int64_t searchers, Report report,
    DeferredErrors errors) {
  uint64_t first = 0;
  if (searchers == 0) {
    first = first_fault(rows, at_fault);
  } else {
    for (int64_t i = threadIdx.x; i < searchers; i += blockDim.x) first = Greater()(first, of_blocks[i]);
    first = block_reduce(first, Greater(), uint64_t(0));
  }
  if (first != 0 && threadIdx.x == 0) errors.report(report(rows - int64_t(first)));
}

// Reports report(row), a Fault, of the first row for which at_fault(row) holds, which is asked once for each row. One
// block takes as many rows as a tile has items, in one launch; more would keep it waiting for one load after another.
template <class AtFault, class Report>
void report_first_row(
    const Launcher& launch, const Tensor& like, int64_t rows, AtFault at_fault, Report report,
    const DeferredErrors& errors) {
  if (rows <= kSamplingTile) {
    const uint64_t* none = nullptr;
    launch(report_rows_kernel<AtFault, Report>, 1, kSamplingThreads, rows, at_fault, none, int64_t(0), report, errors);
    return;
  }
  const int64_t searchers = std::min(blocks_for(rows, kSamplingTile), resident_blocks(launch));
  const Tensor found = empty_vector(searchers, ScalarType::Long, like);
  uint64_t* of_blocks = static_cast<uint64_t*>(found.mutable_data_ptr());
  const uint64_t* searched = of_blocks;
  launch(search_rows_kernel<AtFault>, searchers, kSamplingThreads, rows, at_fault, of_blocks);
  launch(report_rows_kernel<AtFault, Report>, 1, kSamplingThreads, rows, at_fault, searched, searchers, report, errors);
}

// What the state of a row tells (fault_of_state).
template <class T>
struct ReportState {
  const bits_t<T>* weights;
  const int64_t* states;
  int64_t n;
  bool one_row;
  __device__ Fault operator()(int64_t row) const { return fault_of_state<T>(states[row], weights, n, row, one_row); }
};

}  // namespace ste_ops
