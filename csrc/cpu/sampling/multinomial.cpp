// Draws without replacement: the least keys of each row, found in stretches of it.
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

// What a weight takes.
constexpr double kRunNanoseconds = 4;

// Runs parts first .. last - 1 of a row of n, each over a stretch of it.
template <class T>
struct RunParts {
  const bits_t<T>* weights;
  uint64_t seed, row;
  int64_t n, stretch;
  std::vector<Least>& parts;

  void operator()(int64_t first, int64_t last) const {
    for (int64_t p = first; p < last; ++p) {
      parts[size_t(p)].template run<T>(weights, seed, row, p * stretch, std::min((p + 1) * stretch, n));
    }
  }
};

template <class T>
struct DrawRow {
  const bits_t<T>* weights;
  uint64_t seed;
  int64_t n, k;
  bool one_row;
  const std::string& op;
  int64_t* out;

  // On so many threads, each with a stretch of the row.
  void operator()(int64_t row, int64_t threads) const {
    const bits_t<T>* of_row = weights + row * n;
    const int64_t stretch = (n + threads - 1) / threads;
    double threshold = guess_threshold<T>(of_row, seed, uint64_t(row), n, k);
    while (true) {
      std::vector<Least> parts(size_t((n + stretch - 1) / stretch), Least(k, threshold));
      const RunParts<T> run{of_row, seed, uint64_t(row), n, stretch, parts};
      if (parts.size() == 1) {
        run(0, 1);
      } else {
        torch::stable::parallel_for(0, int64_t(parts.size()), 1, run);
      }
      check_row<T>(parts, of_row, n, one_row ? -1 : row, k, op);
      int64_t kept = 0;
      for (const Least& part : parts) kept += int64_t(part.kept.size());
      if (kept >= k) {
        Finish(parts, k, out + row * k);
        return;
      }
      threshold = std::numeric_limits<double>::infinity();  // the guess misled
    }
  }
};

// Draws rows first .. last - 1, up to one that cannot be drawn, which it notes.
template <class T>
struct TryRows {
  const DrawRow<T>& draw;
  std::atomic<int64_t>& faulty;

  void operator()(int64_t first, int64_t last) const {
    for (int64_t row = first; row < last; ++row) {
      try {
        draw(row, 1);
      } catch (const std::runtime_error&) {
        return lower(faulty, row);
      }
    }
  }
};

template <class T>
void draw_rows(const DistinctDraws& call) {
  const int64_t rows = call.weights.rows, n = call.weights.n;
  const DrawRow<T> draw{
      call.weights.bits<T>(),
      *unsigned_data(call.seed),
      n,
      call.num_samples,
      call.weights.one_row,
      call.op,
      mutable_typed_data<int64_t>(call.out)};
  const double of_row = kRunNanoseconds * double(n);
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), int64_t(of_row / kWorthAThread));
  if (rows < threads && of_row >= kWorthARegion) {
    for (int64_t row = 0; row < rows; ++row) draw(row, threads);
    return;
  }
  // The first row at fault is the one to name.
  std::atomic<int64_t> faulty(rows);
  share_out(rows, of_row, TryRows<T>{draw, faulty});
  if (faulty < rows) draw(faulty, 1);
}

Tensor multinomial_without_replacement_cpu(Tensor weights, Tensor seed, int64_t num_samples, std::string op) {
  const DistinctDraws call = prepare_distinct_draws(weights, seed, num_samples, op);
  dispatch_weights(op.c_str(), call.weights, [&](auto type) { draw_rows<typename decltype(type)::type>(call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("multinomial_without_replacement", TORCH_BOX(&multinomial_without_replacement_cpu)); }

}  // namespace ste_ops
