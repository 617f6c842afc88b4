#include "ops/clip/per_sample.h"

#include "cuda/clip/norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kSampleThreads = 256;
// Elements of a sample that a block reads: few, because a small model has few columns and many samples.
constexpr int64_t kSampleBlock = 2048;

template <int N>
struct SampleTable {
  const void* samples[N];
  void* sum[N];
  int64_t length[N];
  uint32_t first_block[N + 1];
  Storage storage[N];
  int count;
};
constexpr int kSmallSamples = 64;
constexpr int kLargeSamples = kLargeTable > 1000 ? 1000 : 100;
static_assert(
    sizeof(SampleTable<kLargeSamples>) <= (kLargeTable > 1000 ? 32764 : 4096) - 64, "room for the parameters");

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
  const int g = find_tensor(table);
  const int64_t length = table.length[g], begin = int64_t(blockIdx.x - table.first_block[g]) * kSampleBlock;
  with_storage(table.storage[g], [&](auto type) {
    using T = typename decltype(type)::type;
    const T* samples = static_cast<const T*>(table.samples[g]) + begin;
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
  const int g = find_tensor(table);
  const int64_t length = table.length[g], begin = int64_t(blockIdx.x - table.first_block[g]) * kSampleBlock;
  const int64_t end = at_most(length, begin + kSampleBlock);
  with_storage(table.storage[g], [&](auto type) {
    using T = typename decltype(type)::type;
    const T* samples = static_cast<const T*>(table.samples[g]);
    T* sum = static_cast<T*>(table.sum[g]);
    for (int64_t column = begin + threadIdx.x; column < end; column += blockDim.x) {
      double total = 0;
      for (int64_t b = 0; b < batch; ++b) total += double(load(samples[b * length + column])) * coefficients[b];
      sum[column] = store<T>(arithmetic_t<T>(double(load(sum[column])) + total));
    }
  });
}

// Calls f(table, blocks) for tables of all items; `first` is the first table's first block among all.
template <class F>
int64_t for_each_table(const std::vector<Samples>& items, F&& f) {
  int64_t first = 0;
  auto run = [&](auto table, size_t begin) {
    constexpr int N = sizeof(table.length) / sizeof(int64_t);
    table.count = int(std::min<size_t>(N, items.size() - begin));
    int64_t blocks = 0;
    for (int i = 0; i < table.count; ++i) {
      const Samples& item = items[begin + i];
      table.samples[i] = item.data;
      table.sum[i] = item.sum;
      table.length[i] = item.length;
      table.storage[i] = item.storage;
      table.first_block[i] = uint32_t(blocks);
      blocks += blocks_for(item.length, kSampleBlock);
    }
    table.first_block[table.count] = uint32_t(blocks);
    f(table, blocks, first);
    first += blocks;
    return table.count;
  };
  for (size_t i = 0; i < items.size();) {
    i +=
        items.size() - i <= kSmallSamples ? run(SampleTable<kSmallSamples>{}, i) : run(SampleTable<kLargeSamples>{}, i);
  }
  return first;
}

template <class Terms>
void launch_partials(
    const Launcher& launch, const SampleLists& lists, Terms terms, const double* largest, double* partials,
    int64_t blocks_per_sample) {
  for_each_table(lists.items, [&](const auto& table, int64_t blocks, int64_t first) {
    constexpr int N = sizeof(table.length) / sizeof(int64_t);
    launch(
        sample_partials_kernel<Terms, N>, {blocks, std::min(lists.batch, kMostSamples)}, kSampleThreads, table, terms,
        largest, partials + first, blocks_per_sample, lists.batch);
  });
}

Tensor clip_per_sample(const SampleLists& lists, double max_norm) {
  Tensor norms = lists.empty_norms();
  if (lists.items.empty()) {
    torch::stable::fill_(norms, 0.0);
    return norms;
  }
  Launcher launch(norms, "clip_per_sample_");
  const int64_t batch = lists.batch;
  const int64_t blocks = for_each_table(lists.items, [](const auto&, int64_t, int64_t) {});
  Tensor workspace = empty_vector(batch * (blocks + 2), ScalarType::Double, norms);
  double* coefficients = static_cast<double*>(workspace.mutable_data_ptr());
  double* largest = coefficients + batch;
  double* partials = largest + batch;
  const double* read_only = partials;
  // float64 squares can leave float64's range: they are scaled by the sample's largest magnitude.
  if (lists.has_float64()) {
    launch_partials(launch, lists, Largest{}, nullptr, partials, blocks);
    launch(sample_largest_kernel, batch, kSampleThreads, read_only, blocks, largest);
    launch_partials(launch, lists, ScaledSquares(1), largest, partials, blocks);
  } else {
    launch_partials(launch, lists, Squares{}, nullptr, partials, blocks);
  }
  launch(
      sample_norms_kernel, batch, kSampleThreads, read_only, blocks, lists.has_float64() ? largest : nullptr, max_norm,
      coefficients, norms.mutable_data_ptr(), lists.has_float64());
  for_each_table(lists.items, [&](const auto& table, int64_t columns, int64_t) {
    constexpr int N = sizeof(table.length) / sizeof(int64_t);
    launch(add_samples_kernel<N>, columns, kSampleThreads, table, static_cast<const double*>(coefficients), batch);
  });
  return norms;
}

void clip_per_sample_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const double max_norm = to<double>(stack[2]);
  stack[0] = from(clip_per_sample(SampleLists(stack[0], stack[1], Placed::kAnywhere), max_norm));
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("clip_per_sample_", &clip_per_sample_cuda); }

}  // namespace ste_ops
