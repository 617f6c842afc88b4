// Draws by the inverse CDF, row by row.
#include "ops/sampling/inverse_cdf.h"

#include <tuple>

#include "cpu/sampling/inverse_cdf.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T>
struct DrawRows {
  const bits_t<T>* weights;
  uint64_t seed;
  int64_t n, num_samples;
  int64_t *out, *total;

  void operator()(int64_t first, int64_t last) const {
    RowDrawer<T> drawer(n, num_samples);
    for (int64_t row = first; row < last; ++row) {
      total[row] = drawer.draw(weights + row * n, seed, uint64_t(row), out + row * num_samples);
    }
  }
};

template <class T>
void draw_rows(const InverseCdfDraws& call) {
  const int64_t rows = call.weights.rows, n = call.weights.n;
  const DrawRows<T> draw{
      call.weights.bits<T>(),
      *unsigned_data(call.seed),
      n,
      call.num_samples,
      mutable_typed_data<int64_t>(call.out),
      mutable_typed_data<int64_t>(call.total)};
  share_rows(rows, summed_nanoseconds(n, call.num_samples), draw);
}

std::tuple<Tensor, Tensor> inverse_cdf_sample_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  const InverseCdfDraws call = prepare_inverse_cdf_draws(weights, seed, num_samples);
  dispatch_weights(call.op, call.weights, [&](auto type) { draw_rows<typename decltype(type)::type>(call); });
  return {call.out, call.total};
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("inverse_cdf_sample", TORCH_BOX(&inverse_cdf_sample_cpu)); }

}  // namespace ste_ops
