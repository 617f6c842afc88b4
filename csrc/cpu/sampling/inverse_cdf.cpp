#include "ops/sampling/inverse_cdf.h"

#include "cpu/sampling/masses.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Weights of one pass.
constexpr int64_t kPassTile = 4096;
// Weights to one sum. A draw goes through as many.
constexpr int64_t kSumTile = 128;
// Draws whose reads overlap.
constexpr int64_t kOverlap = 16;

// Rows of n weights, one after the other.
template <class T>
class RowDrawer {
 public:
  explicit RowDrawer(int64_t n) : n_(n), tiles_(n, kPassTile), before_((n + kSumTile - 1) / kSumTile) {}

  // Returns the total.
  int64_t draw(const bits_t<T>* weights, uint64_t seed, uint64_t number, int64_t num_samples, int64_t* out) {
    Row row = tiles_.measure(weights);
    int64_t exponent = 0;
    if (row.invalid == 0 && row.largest != 0) {
      exponent = mass_exponent<T>(row, n_);
      tiles_.each([&](int64_t, int64_t begin, int64_t count) {
        mass_sums<T>(weights + begin, count, exponent, kSumTile, before_.data() + begin / kSumTile);
      });
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
    torch::stable::parallel_for(0, num_samples, kGrain / 128, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i += kOverlap) {
        uint64_t units[kOverlap];
        int64_t tiles[kOverlap], count = std::min(kOverlap, last - i);
        for (int64_t k = 0; k < count; ++k) {
          units[k] = uniform_below(philox_draw(seed, number, uint64_t(i + k)), row.total);
          tiles[k] = tile_at(units[k]);
          const bits_t<T>* w = weights + tiles[k] * kSumTile;
          for (int64_t at = 0; at < kSumTile; at += 64 / int64_t(sizeof(T))) __builtin_prefetch(w + at);
        }
        for (int64_t k = 0; k < count; ++k) out[i + k] = item_at(weights, exponent, tiles[k], units[k]);
      }
    });
    return total_of(row, n_);
  }

 private:
  // The last tile that begins at or before a unit of the masses laid end to end, without a branch to mispredict.
  int64_t tile_at(uint64_t unit) const {
    const uint64_t* low = before_.data();
    for (size_t count = before_.size(); count > 1; count -= count / 2) {
      low += int64_t(choose(low[count / 2] <= unit, count / 2, 0));
    }
    return low - before_.data();
  }

  // The item in the tile whose stretch has the unit in it.
  int64_t item_at(const bits_t<T>* weights, int64_t exponent, int64_t tile, uint64_t unit) const {
    int64_t begin = tile * kSumTile;
    uint64_t masses[kSumTile];
    mass_tile<T>(weights + begin, std::min(kSumTile, n_ - begin), exponent, masses);
    uint64_t left = unit - before_[tile];
    int64_t i = 0;
    for (; left >= masses[i]; ++i) left -= masses[i];
    return begin + i;
  }

  int64_t n_;
  RowTiles<T> tiles_;
  std::vector<uint64_t> before_;  // the mass before each tile
};

std::tuple<Tensor, Tensor> inverse_cdf_sample_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  return inverse_cdf_sample(
      weights, seed, num_samples,
      [](auto type, const Tensor&, const auto* weights, const uint64_t* seed, int64_t rows, int64_t n,
         int64_t num_samples, int64_t* out, int64_t* total) {
        using T = typename decltype(type)::type;
        auto draw = [&](int64_t first, int64_t last) {
          RowDrawer<T> drawer(n);
          for (int64_t row = first; row < last; ++row) {
            total[row] = drawer.draw(weights + row * n, *seed, uint64_t(row), num_samples, out + row * num_samples);
          }
        };
        if (n > kGrain) return draw(0, rows);
        torch::stable::parallel_for(0, rows, kGrain / n, draw);
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("inverse_cdf_sample", TORCH_BOX(&inverse_cdf_sample_cpu)); }

}  // namespace ste_ops
