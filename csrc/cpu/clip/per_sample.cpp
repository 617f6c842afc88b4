#include "ops/clip/per_sample.h"

#include "cpu/clip/blocks.h"

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

// Of each sample the norm over all tensors.
std::vector<double> norms_of(const SampleLists& lists) {
  int64_t length = 1;
  for (const Samples& samples : lists.items) length += samples.length;
  std::vector<double> norms(lists.batch);
  torch::stable::parallel_for(
      0, lists.batch, std::max<int64_t>(1, kReduceGrain / length), [&](int64_t begin, int64_t end) {
        std::vector<TensorData> parts(lists.items.size());
        for (int64_t b = begin; b < end; ++b) {
          for (size_t i = 0; i < parts.size(); ++i) parts[i] = lists.items[i].sample(b);
          norms[b] = norm_of_blocks(Blocks(parts), 2, lists.has_float64());
        }
      });
  return norms;
}

void add_clipped(const SampleLists& lists, const std::vector<double>& coefficients) {
  std::vector<TensorData> sums;
  for (const Samples& samples : lists.items) sums.push_back(samples.total());
  const Blocks blocks(sums);
  for_each_block(
      blocks,
      [&](const TensorData& sum, int64_t begin, int64_t end, int64_t) {
        const Samples& samples = lists.items[&sum - &blocks.gradient(0)];
        visit_storage(sum.storage, [&](auto type) {
          using T = typename decltype(type)::type;
          double totals[kColumns];
          for (int64_t column = begin; column < end; column += kColumns) {
            const int64_t count = std::min(kColumns, end - column);
            std::fill_n(totals, count, 0.0);
            const T* x = static_cast<const T*>(samples.data) + column;
            int64_t b = 0;
            for (; b + kTogether <= lists.batch; b += kTogether) {
              each(AddScaled<kTogether, T>(x + b * samples.length, samples.length, totals, &coefficients[b]), 0, count);
            }
            for (; b < lists.batch; ++b) {
              each(AddScaled<1, T>(x + b * samples.length, samples.length, totals, &coefficients[b]), 0, count);
            }
            add_to_sum_loop(totals, static_cast<T*>(sum.data) + column, count);
          }
        });
      },
      std::max(kBlock, kReduceGrain / lists.batch));
}

Tensor clip_per_sample(const SampleLists& lists, double max_norm) {
  const std::vector<double> norms = norms_of(lists);
  Tensor out = lists.empty_norms();
  std::vector<double> coefficients(norms.size());
  for (size_t b = 0; b < norms.size(); ++b) {
    coefficients[b] = sample_coefficient(norms[b], max_norm);
    write_norm(out, int64_t(b), norms[b]);
  }
  if (!lists.items.empty()) add_clipped(lists, coefficients);
  return out;
}

void clip_per_sample_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const double max_norm = to<double>(stack[2]);
  stack[0] = from(clip_per_sample(SampleLists(stack[0], stack[1], Placed::kOnCpu), max_norm));
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("clip_per_sample_", &clip_per_sample_cpu); }

}  // namespace ste_ops
