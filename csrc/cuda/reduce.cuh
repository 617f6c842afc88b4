// Reductions over groups of elements (core/groups.h): a block for each task, then one for each group that joins its
// parts. The order of addition follows from the shape and the dtype alone. How results join is a struct of
// core/reduction.h: Additive sums in float64, AdditivePair makes two sums, Maximum takes the largest value, and a NaN
// wins.
//
//   struct Magnitudes {
//     const T* x;
//     __device__ Magnitudes for_lanes(const int64_t*) const { return *this; }
//     __device__ void operator()(int64_t begin, int64_t end, double* terms) const {
//       Vector<T> v = read_vector(x, begin, end, aligned16(x + begin));
//       for (int k = 0; k < Vector<T>::size; ++k) terms[k] = magnitude(double(load(v.value[k])));
//     }
//   };
//   reduce_groups<Additive, T>(launch, groups, x_tensor, Magnitudes{x}, finish);
//
// A thread asks once for the terms of its lanes: for_lanes(group) gets the groups of the elements of its vectors, which
// stay the same. The terms may write as they read; what lies at or past `end` is not added.
#pragma once

#include <type_traits>

#include "core/groups.h"
#include "core/reduction.h"
#include "cuda/vector.cuh"
#include "ops/layout.h"

namespace ste_ops {

constexpr int kReduceThreads = 256;
template <class T>
constexpr int64_t kReduceSpan = int64_t(kReduceThreads) * Vector<T>::size;
constexpr int64_t kReduceRows = 8;

template <class Reduction>
struct CombineParts {
  template <class State>
  __device__ State operator()(State a, State b) const {
    return Reduction::combine(a, b);
  }
};

// The results of a task whose row holds several groups, from the totals of its lanes.
template <class Reduction, class State>
__device__ void fold_task(
    const Groups& groups, const State* of_lane, int64_t filled, typename Reduction::Total* of_part) {
  using Total = typename Reduction::Total;
  const int columns = int(filled / groups.inner), inner = int(groups.inner);
  const int count = columns < groups.size ? columns : int(groups.size);
  const int members = columns / count * inner;
  auto total = [&](int c, int from, int step) {
    State sum = State(Reduction::identity());
    for (int m = from; m < members; m += step) {
      sum = Reduction::combine(sum, of_lane[(m / inner * count + c) * inner + m % inner]);
    }
    return sum;
  };
  if (members < kWarpSize) {
    for (int c = threadIdx.x; c < count; c += blockDim.x) of_part[c] = Total(total(c, 0, 1));
    return;
  }
  for (int c = warp_index(); c < count; c += warp_count()) {
    State sum = warp_reduce(total(c, lane_index(), kWarpSize), CombineParts<Reduction>());
    if (lane_index() == 0) of_part[c] = Total(sum);
  }
}

// What a block does with its task.
template <class Reduction, class T, class Terms>
__device__ void reduce_block(const Partition& partition, const Terms& terms, typename Reduction::Total* results) {
  using State = typename Reduction::template State<arithmetic_t<T>>;
  using Total = typename Reduction::Total;
  constexpr int N = Vector<T>::size;
  __shared__ State of_lane[kReduceSpan<T>];
  const Groups& groups = partition.groups;
  const ReduceTask task = partition.task(blockIdx.x);
  const int64_t filled = task.length < task.width ? task.length : task.width;
  Total* of_part = results + (task.batch * partition.parts() + task.part) * groups.size + task.first;
  const bool one_group = groups.inner >= filled;
  const int lane = int(threadIdx.x) * N;

  int64_t group[N];
  // A row is no longer than its span, so that 32 bits hold every place in it.
  const unsigned size = unsigned(groups.size < kReduceSpan<T> ? groups.size : kReduceSpan<T>);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    group[k] = task.batch * groups.size + task.first;
    // Beyond the last elements there may be no group.
    if (!one_group && lane + k < filled) group[k] += unsigned(lane + k) / unsigned(groups.inner) % size;
  }
  const auto of_lanes = terms.for_lanes(group);
  State totals[N];
#pragma unroll
  for (int k = 0; k < N; ++k) totals[k] = State(Reduction::identity());
  for (int64_t outer = 0; outer < task.outers; ++outer) {
    for (int64_t at = 0; at < task.length; at += task.width) {
      const int64_t row = task.begin + outer * task.stride + at;
      const int64_t end = row + (task.length - at < task.width ? task.length - at : task.width);
      if (row + lane >= end) continue;
      State each[N];
      of_lanes(row + lane, end, each);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (row + lane + k < end) totals[k] = Reduction::combine(totals[k], each[k]);
      }
    }
  }
  if (one_group) {
    State total = totals[0];
#pragma unroll
    for (int k = 1; k < N; ++k) total = Reduction::combine(total, totals[k]);
    total = block_reduce(total, CombineParts<Reduction>(), State(Reduction::identity()));
    if (threadIdx.x == 0) *of_part = Total(total);
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) of_lane[lane + k] = totals[k];
  __syncthreads();
  fold_task<Reduction>(groups, of_lane, filled, of_part);
}

// Left to choose, the compiler takes 64 registers on 8.0 and spills.
// Moves: reads Terms, writes Terms + Reduction * groups * parts.
template <class Reduction, class T, class Terms>
__global__ void __launch_bounds__(kReduceThreads, 3)
    reduce_kernel(const __grid_constant__ Partition partition, Terms terms, typename Reduction::Total* results) {
  reduce_block<Reduction, T>(partition, terms, results);
}

// Two sums of each lane take more registers than three blocks leave.
// Moves: reads Terms, writes Terms + Reduction * groups * parts.
template <class Reduction, class T, class Terms>
__global__ void __launch_bounds__(kReduceThreads, 2)
    reduce_pair_kernel(const __grid_constant__ Partition partition, Terms terms, typename Reduction::Total* results) {
  reduce_block<Reduction, T>(partition, terms, results);
}

// One block: the total of a group from its parts, handed to finish(group, total) in one thread.
// Moves: reads Reduction * groups * parts + Finish, writes Finish.
template <class Reduction, class Finish>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_finish_kernel(const typename Reduction::Total* results, int64_t parts, int64_t size, Finish finish) {
  using Total = typename Reduction::Total;
  const int64_t group = blockIdx.x, batch = group / size;
  const Total* mine = results + batch * parts * size + group % size;
  Total total = Reduction::identity();
  for (int64_t part = threadIdx.x; part < parts; part += blockDim.x) {
    total = Reduction::combine(total, mine[part * size]);
  }
  total = block_reduce(total, CombineParts<Reduction>(), Total(Reduction::identity()));
  if (threadIdx.x == 0) finish(group, total);
}

// One thread a group, where the parts are few: neighbouring threads read neighbouring results.
// Moves: reads Reduction * groups * parts + Finish, writes Finish.
template <class Reduction, class Finish>
__global__ void __launch_bounds__(kReduceThreads) reduce_few_parts_kernel(
    const typename Reduction::Total* results, int64_t parts, int64_t size, int64_t groups, Finish finish) {
  using Total = typename Reduction::Total;
  const int64_t group = grid_index();
  if (group >= groups) return;
  const Total* mine = results + group / size * parts * size + group % size;
  Total total = Reduction::identity();
  for (int64_t part = 0; part < parts; ++part) total = Reduction::combine(total, mine[part * size]);
  finish(group, total);
}

// A finish that keeps the totals.
// Moves: reads 0, writes groups * A.
template <class A>
struct KeepTotal {
  A* totals;
  __device__ void operator()(int64_t group, double total) const { totals[group] = A(total); }
};

template <class Reduction, class T, class Terms, class Finish>
void reduce_groups(const Launcher& launch, const Groups& groups, const Tensor& like, Terms terms, Finish finish) {
  const Partition partition(groups, kReduceSpan<T>, kReduceSpan<T> * kReduceRows);
  using Total = typename Reduction::Total;
  Tensor kept = empty_vector(partition.results() * int64_t(sizeof(Total) / sizeof(double)), ScalarType::Double, like);
  Total* results = static_cast<Total*>(kept.mutable_data_ptr());
  if constexpr (std::is_same_v<Reduction, AdditivePair>) {
    launch(reduce_pair_kernel<Reduction, T, Terms>, partition.tasks(), kReduceThreads, partition, terms, results);
  } else {
    launch(reduce_kernel<Reduction, T, Terms>, partition.tasks(), kReduceThreads, partition, terms, results);
  }
  const Total* written = results;
  if (partition.parts() <= kWarpSize) {
    launch(
        reduce_few_parts_kernel<Reduction, Finish>, blocks_for(groups.count(), kReduceThreads), kReduceThreads, written,
        partition.parts(), groups.size, groups.count(), finish);
  } else {
    launch(
        reduce_finish_kernel<Reduction, Finish>, groups.count(), kReduceThreads, written, partition.parts(),
        groups.size, finish);
  }
}

}  // namespace ste_ops
