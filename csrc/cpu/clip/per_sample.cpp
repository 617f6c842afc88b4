#include "ops/clip/per_sample.h"

#include "cpu/clip/blocks.h"
#include "cpu/clip/norm.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Sums that a thread keeps in float64 while it goes through the samples, `kTogether` of them at a time.
constexpr int64_t kColumns = 2048;
constexpr int kTogether = 4;

template <int samples, class T>
struct AddScaled {
  const T* x;
  int64_t stride;
  double* totals;
  double coefficients[samples];

  AddScaled(const T* x, int64_t stride, double* totals, const double* of_sample)
      : x(x), stride(stride), totals(totals) {
    std::copy_n(of_sample, samples, coefficients);
  }
  STE_OPS_INLINE void operator()(int64_t i) const {
    double total = totals[i];
    for (int b = 0; b < samples; ++b) total += double(load(x[b * stride + i])) * coefficients[b];
    totals[i] = total;
  }
};

template <class T>
STE_OPS_CLONES void add_to_sum_loop(const double* totals, T* sum, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) sum[i] = store<T>(arithmetic_t<T>(double(load(sum[i])) + totals[i]));
}

struct NormsOfSamples {
  const ClipPerSample& call;
  double* norms;

  void operator()(int64_t begin, int64_t end) const {
    std::vector<TensorData> parts(call.items.size());
    for (int64_t b = begin; b < end; ++b) {
      for (size_t i = 0; i < parts.size(); ++i) parts[i] = call.items[i].sample(b);
      norms[b] = norm_of_blocks(Blocks(parts), 2, call.has_float64());
    }
  }
};

// Of each sample the norm over all tensors.
std::vector<double> norms_of(const ClipPerSample& call) {
  int64_t length = 1;
  for (const Samples& samples : call.items) length += samples.length;
  std::vector<double> norms(call.batch);
  const int64_t grain = std::max<int64_t>(1, kReduceGrain / length);
  torch::stable::parallel_for(0, call.batch, grain, NormsOfSamples{call, norms.data()});
  return norms;
}

// The columns of a block of a sum: adds every sample's to them.
struct AddSamples {
  const ClipPerSample& call;
  const Blocks& sums;
  const double* coefficients;

  void operator()(const TensorData& sum, int64_t begin, int64_t end, int64_t /* number of the block */) const {
    const Samples& samples = call.items[&sum - &sums.tensor(0)];
    visit_storage(sum.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      for (int64_t column = begin; column < end; column += kColumns) {
        add<T>(samples, column, std::min(kColumns, end - column));
      }
    });
  }

  template <class T>
  void add(const Samples& samples, int64_t column, int64_t count) const {
    double totals[kColumns];
    std::fill_n(totals, count, 0.0);
    const T* x = static_cast<const T*>(samples.data) + column;
    const int64_t length = samples.length;
    int64_t b = 0;
    for (; b + kTogether <= call.batch; b += kTogether) {
      each(AddScaled<kTogether, T>(x + b * length, length, totals, coefficients + b), 0, count);
    }
    for (; b < call.batch; ++b) each(AddScaled<1, T>(x + b * length, length, totals, coefficients + b), 0, count);
    add_to_sum_loop(totals, static_cast<T*>(samples.sum) + column, count);
  }
};

void clip_per_sample_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const ClipPerSample call(stack, Placed::kOnCpu);
  const std::vector<double> norms = norms_of(call);
  Tensor out = call.empty_norms();
  std::vector<double> coefficients(norms.size());
  for (size_t b = 0; b < norms.size(); ++b) {
    coefficients[b] = sample_coefficient(norms[b], call.max_norm);
    write_norm(out, int64_t(b), norms[b]);
  }
  if (!call.items.empty()) {
    std::vector<TensorData> totals;
    for (const Samples& samples : call.items) totals.push_back(samples.total());
    const Blocks sums(totals);
    const int64_t grain = std::max(kBlock, kReduceGrain / call.batch);
    for_each_block(sums, AddSamples{call, sums, coefficients.data()}, grain);
  }
  stack[0] = from(out);
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("clip_per_sample_", &clip_per_sample_cpu); }

}  // namespace ste_ops
