#include "ops/sampling/multinomial.h"

#include "cpu/sampling/race.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Throws what is wrong with the row if k of its weights cannot be drawn.
template <class T>
void check_row(
    const std::vector<Least>& parts, const bits_t<T>* weights, int64_t n, int64_t row, int64_t k,
    const std::string& op) {
  int64_t positive = 0;
  bool invalid = false;
  for (const Least& part : parts) {
    positive += part.positive;
    invalid |= part.invalid;
  }
  if (invalid) {
    int64_t first = std::find_if_not(weights, weights + n, is_weight<T>) - weights;
    refuse(op, Fault::weight(row, first, double(load(bit_cast<T>(weights[first])))));
  }
  if (positive == 0) refuse(op, Fault::only_zeros(row));
  if (positive < k) refuse(op, Fault::too_few(row, k, positive));
}

// A row on as many threads as there are, each with a stretch of it.
template <class T>
void draw_row(
    const bits_t<T>* weights, uint64_t seed, uint64_t row, int64_t number, int64_t n, int64_t k, int64_t threads,
    const std::string& op, int64_t* out) {
  double threshold = guess_threshold<T>(weights, seed, row, n, k);
  const int64_t stretch = (n + threads - 1) / threads;
  while (true) {
    std::vector<Least> parts(size_t((n + stretch - 1) / stretch), Least(k, threshold));
    auto run = [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        parts[size_t(p)].template run<T>(weights, seed, row, p * stretch, std::min((p + 1) * stretch, n));
      }
    };
    if (parts.size() == 1) {
      run(0, 1);
    } else {
      torch::stable::parallel_for(0, int64_t(parts.size()), 1, run);
    }
    check_row<T>(parts, weights, n, number, k, op);
    int64_t kept = 0;
    for (const Least& part : parts) kept += int64_t(part.kept.size());
    if (kept >= k) {
      Finish(parts, k, out);
      return;
    }
    threshold = std::numeric_limits<double>::infinity();  // the sample misled
  }
}

Tensor multinomial_without_replacement_cpu(Tensor weights, Tensor seed, int64_t num_samples, std::string op) {
  return draw_without_replacement(
      weights, seed, num_samples, op.c_str(),
      [&](auto type, const Tensor& weights, const auto* w, const uint64_t* seed, int64_t rows, int64_t n,
          int64_t* out) {
        using T = typename decltype(type)::type;
        auto draw = [&](int64_t row, int64_t threads) {
          draw_row<T>(
              w + row * n, *seed, uint64_t(row), row_number(weights, row), n, num_samples, threads, op,
              out + row * num_samples);
        };
        if (n > kGrain) {
          int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), n / kGrain + 1);
          for (int64_t row = 0; row < rows; ++row) draw(row, threads);
          return;
        }
        // The first row at fault is the one to name.
        std::atomic<int64_t> faulty(rows);
        torch::stable::parallel_for(0, rows, kGrain / n, [&](int64_t first, int64_t last) {
          for (int64_t row = first; row < last; ++row) {
            try {
              draw(row, 1);
            } catch (const std::runtime_error&) {
              return lower(faulty, row);
            }
          }
        });
        if (faulty < rows) draw(faulty, 1);
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("multinomial_without_replacement", TORCH_BOX(&multinomial_without_replacement_cpu)); }

}  // namespace ste_ops
