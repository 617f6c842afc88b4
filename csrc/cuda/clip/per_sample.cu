#include "ops/clip/per_sample.h"

#include "cuda/clip/norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kSampleThreads = 256;
// Elements of a sample that a block reads: few, because a small model has few columns and many samples.
constexpr int64_t kSampleBlock = 2048;

// The samples of tensors; a block for each kSampleBlock elements of a sample.
template <int N>
struct SampleTable : TableOf<N> {
  const void* samples[N];
  void* sum[N];
  int64_t length[N];
  Storage storage[N];

  static int64_t blocks_of(const Samples& item) { return blocks_for(item.length, kSampleBlock); }
  void set(int i, const Samples& item) {
    samples[i] = item.data;
    sum[i] = item.sum;
    length[i] = item.length;
    storage[i] = item.storage;
  }
};

// A grid has at most this many blocks in its second dimension; more samples take turns.
constexpr int64_t kMostSamples = 65535;

__device__ ScaledSquares terms_of(ScaledSquares, const double* largest, int64_t sample) {
  return ScaledSquares::scaled(largest[sample]);
}
template <class Terms>
__device__ Terms terms_of(Terms terms, const double*, int64_t) {
  return terms;
}

// Block (x, y) reads block x of sample y. Left to choose, the compiler takes 64 registers and spills.
// Moves: reads n * T, writes 8 * partials.
// Moves (scaled): reads n * T + 8 * batch, writes 8 * partials.
template <class Terms, int N>
__global__ void __launch_bounds__(kSampleThreads, 2) sample_partials_kernel(
    const __grid_constant__ SampleTable<N> table, Terms terms, const double* largest, double* partials,
    int64_t blocks_per_sample, int64_t batch) {
  const int t = find_item(table);
  const int64_t length = table.length[t], begin = int64_t(blockIdx.x - table.first_block[t]) * kSampleBlock;
  with_storage(table.storage[t], [&](auto type) {
    using T = typename decltype(type)::type;
    const T* samples = static_cast<const T*>(table.samples[t]) + begin;
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
      const double total =
          dense_total(terms_of(terms, largest, b), samples + b * length, at_most(length - begin, kSampleBlock));
      if (threadIdx.x == 0) partials[b * blocks_per_sample + blockIdx.x] = total;
    }
  });
}

// A block for each sample: what its partial results come to.
template <class Terms>
__device__ double sample_total(const double* partials, int64_t count) {
  double total = Terms::identity();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    total = Terms::combine(total, partials[blockIdx.x * count + i]);
  }
  return combine_block<Terms>(total);
}

// Moves: reads 8 * partials, writes 8 * batch.
__global__ void __launch_bounds__(kSampleThreads)
    sample_largest_kernel(const double* partials, int64_t count, double* largest) {
  const double total = sample_total<Largest>(partials, count);
  if (threadIdx.x == 0) largest[blockIdx.x] = total;
}

// `largest` where the squares were scaled by it.
// Moves: reads 8 * partials, writes batch * (8 + norm); norm is 4 or 8.
// Moves (scaled): reads 8 * partials + 8 * batch, writes batch * (8 + norm).
__global__ void __launch_bounds__(kSampleThreads) sample_norms_kernel(
    const double* partials, int64_t count, const double* largest, double max_norm, double* coefficients, void* norms,
    bool float64) {
  const double total = sample_total<Squares>(partials, count);
  if (threadIdx.x != 0) return;
  double norm = sqrt(total);
  if (largest != nullptr) {
    const double scale = largest[blockIdx.x];
    norm = has_scale(scale) ? ScaledSquares::scaled(scale).finish(total) : scale;
  }
  coefficients[blockIdx.x] = sample_coefficient(norm, max_norm);
  if (float64) {
    static_cast<double*>(norms)[blockIdx.x] = norm;
  } else {
    static_cast<float*>(norms)[blockIdx.x] = float(norm);
  }
}

// A thread for each column goes through the samples in order.
// Moves: reads n * T + n / batch * T + 8 * batch, writes n / batch * T.
template <int N>
__global__ void __launch_bounds__(kSampleThreads)
    add_samples_kernel(const __grid_constant__ SampleTable<N> table, const double* coefficients, int64_t batch) {
  const int t = find_item(table);
  const int64_t length = table.length[t], begin = int64_t(blockIdx.x - table.first_block[t]) * kSampleBlock;
  const int64_t end = at_most(length, begin + kSampleBlock);
  with_storage(table.storage[t], [&](auto type) {
    using T = typename decltype(type)::type;
    const T* samples = static_cast<const T*>(table.samples[t]);
    T* sum = static_cast<T*>(table.sum[t]);
    for (int64_t column = begin + threadIdx.x; column < end; column += blockDim.x) {
      double total = 0;
      for (int64_t b = 0; b < batch; ++b) total += double(load(samples[b * length + column])) * coefficients[b];
      sum[column] = store<T>(arithmetic_t<T>(double(load(sum[column])) + total));
    }
  });
}

template <class Terms>
struct LaunchSamplePartials {
  const Launcher& launch;
  Terms terms;
  const double* largest;
  double* partials;
  int64_t blocks_per_sample, batch;

  template <int N>
  void operator()(const SampleTable<N>& table, TablePlace at) const {
    launch(
        sample_partials_kernel<Terms, N>, {at.blocks, std::min(batch, kMostSamples)}, kSampleThreads, table, terms,
        largest, partials + at.first_block, blocks_per_sample, batch);
  }
};

struct LaunchAddition {
  const Launcher& launch;
  const double* coefficients;
  int64_t batch;

  template <int N>
  void operator()(const SampleTable<N>& table, TablePlace at) const {
    launch(add_samples_kernel<N>, at.blocks, kSampleThreads, table, coefficients, batch);
  }
};

template <class Use>
void for_each_table_of(const ClipPerSample& call, const Use& use) {
  for_each_table<SampleTable>(call.items.data(), call.items.size(), use);
}

void clip_per_sample_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const ClipPerSample call(stack, Placed::kAnywhere);
  Tensor norms = call.empty_norms();
  if (call.items.empty()) {
    torch::stable::fill_(norms, 0.0);
    stack[0] = from(norms);
    return;
  }
  const Launcher launch(norms, "clip_per_sample_");
  const int64_t batch = call.batch;
  const bool wide = call.has_float64();
  int64_t blocks = 0;
  for (const Samples& item : call.items) blocks += SampleTable<8>::blocks_of(item);
  Tensor workspace = empty_vector(batch * (blocks + 2), ScalarType::Double, norms);
  double* coefficients = static_cast<double*>(workspace.mutable_data_ptr());
  double* largest = coefficients + batch;
  double* partials = largest + batch;
  // float64 squares can leave float64's range: they are scaled by the sample's largest magnitude.
  if (wide) {
    for_each_table_of(call, LaunchSamplePartials<Largest>{launch, {}, nullptr, partials, blocks, batch});
    launch(sample_largest_kernel, batch, kSampleThreads, partials, blocks, largest);
    const ScaledSquares squares(1);
    for_each_table_of(call, LaunchSamplePartials<ScaledSquares>{launch, squares, largest, partials, blocks, batch});
  } else {
    for_each_table_of(call, LaunchSamplePartials<Squares>{launch, {}, nullptr, partials, blocks, batch});
  }
  launch(
      sample_norms_kernel, batch, kSampleThreads, partials, blocks, wide ? largest : nullptr, call.max_norm,
      coefficients, norms.mutable_data_ptr(), wide);
  for_each_table_of(call, LaunchAddition{launch, coefficients, batch});
  stack[0] = from(norms);
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("clip_per_sample_", &clip_per_sample_cuda); }

}  // namespace ste_ops
