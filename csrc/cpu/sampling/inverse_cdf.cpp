#include "../../inverse_cdf.h"

#include "../../library.h"
#include "masses.h"

namespace ste_ops {
namespace {

// Weights to one sum; a draw goes through half as many.
constexpr int64_t kSumTile = 512;

// Rows of n weights, one after the other.
template <class T>
class RowDrawer {
 public:
  explicit RowDrawer(int64_t n) : n_(n), tiles_(n, kSumTile), before_(tiles_.count()) {}

  // Returns the total.
  int64_t draw(const bits_t<T>* weights, uint64_t seed, uint64_t number, int64_t num_samples, int64_t* out) {
    Row row = tiles_.measure(weights);
    int64_t exponent = 0;
    if (row.invalid == 0 && row.largest != 0) {
      exponent = mass_exponent<T>(row, n_);
      tiles_.each(
          [&](int64_t t, int64_t begin, int64_t count) { before_[t] = mass_sum<T>(weights + begin, count, exponent); });
      for (uint64_t& before : before_) {
        uint64_t sum = before;
        before = row.total;
        row.total += sum;
      }
    }
    if (total_of(row, n_) <= 0) {
      std::fill(out, out + num_samples, -1);
      return total_of(row, n_);
    }
    torch::stable::parallel_for(0, num_samples, kGrain / kSumTile, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        out[i] = item_at(weights, exponent, uniform_below(philox_draw(seed, number, uint64_t(i)), row.total));
      }
    });
    return total_of(row, n_);
  }

 private:
  // The item whose stretch of the masses laid end to end has `unit` in it.
  int64_t item_at(const bits_t<T>* weights, int64_t exponent, uint64_t unit) const {
    int64_t t = std::upper_bound(before_.begin(), before_.end(), unit) - before_.begin() - 1;
    int64_t begin = t * kSumTile;
    uint64_t masses[kSumTile];
    mass_tile<T>(weights + begin, std::min(kSumTile, n_ - begin), exponent, masses);
    uint64_t left = unit - before_[t];
    int64_t i = 0;
    for (; left >= masses[i]; ++i) left -= masses[i];
    return begin + i;
  }

  int64_t n_;
  RowTiles<T> tiles_;
  std::vector<uint64_t> before_;  // the mass before each tile
};

std::tuple<Tensor, Tensor> inverse_cdf_sample_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  return inverse_cdf_sample(weights, seed, num_samples,
                            [](auto type, const Tensor&, const auto* weights, const uint64_t* seed, int64_t rows,
                               int64_t n, int64_t num_samples, int64_t* out, int64_t* total) {
                              using T = typename decltype(type)::type;
                              auto draw = [&](int64_t first, int64_t last) {
                                RowDrawer<T> drawer(n);
                                for (int64_t row = first; row < last; ++row) {
                                  total[row] = drawer.draw(weights + row * n, *seed, uint64_t(row), num_samples,
                                                           out + row * num_samples);
                                }
                              };
                              if (n > kGrain) return draw(0, rows);
                              torch::stable::parallel_for(0, rows, kGrain / n, draw);
                            });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("inverse_cdf_sample", TORCH_BOX(&inverse_cdf_sample_cpu)); }

}  // namespace ste_ops
