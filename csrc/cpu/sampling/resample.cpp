// Resampling of particles: sums of masses, then a merge of the positions with them.
#include "ops/sampling/resample.h"

#include <algorithm>
#include <memory>

#include "cpu/sampling/masses.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Particles of one pass over a row, and elements of a merge that a thread takes at a time.
constexpr int64_t kParticles = 8192;
// What a particle takes, an element of a merge, and a draw from the residues.
constexpr double kParticleNanoseconds = 6, kMergeNanoseconds = 4, kPlaceNanoseconds = 20;

// The masses of a tile become the sums up to each of them.
inline void sum_up(uint64_t* masses, int64_t count, uint64_t before) {
  for (int64_t i = 0; i < count; ++i) masses[i] = before += masses[i];
}

STE_OPS_CLONES void random_bits(uint64_t seed, uint64_t row, uint64_t first, RandomBlock<kDraws>& random) {
  philox_block(seed, row, first, random);
}

// Ancestors begin .. end - 1; the first of them is particle i or a later one.
void merge_ancestors(
    const uint64_t* up_to, const Positions& positions, int64_t i, int64_t begin, int64_t end, int64_t* out) {
  RandomBlock<kDraws> random;
  uint64_t unit[kDraws];
  Quotient stratum = positions.strata.begin(uint64_t(begin));
  for (; begin < end; begin += kDraws) {
    const int64_t count = std::min(kDraws, end - begin);
    if (positions.each) random_bits(positions.seed, positions.row, uint64_t(begin), random);
    for (int64_t k = 0; k < count; ++k) {
      unit[k] = positions.strata.unit(stratum, positions.each ? random.low[k] : positions.random);
      stratum = positions.strata.next(stratum);
    }
    // No branch on what a position meets: it would be mispredicted every other time.
    for (int64_t k = 0; k < count;) {
      out[begin + k] = i;
      bool behind = up_to[i] <= unit[k];
      i += behind;
      k += !behind;
    }
  }
}

// Rows of n particles, one after the other.
template <class T>
class RowResampler {
 public:
  RowResampler(int64_t n, int64_t num_samples)
      : n_(n),
        num_samples_(num_samples),
        tiles_(n, kParticles, kParticleNanoseconds),
        before_(tiles_.count()),
        copied_before_(tiles_.count()),
        up_to_(new uint64_t[n]) {}

  // Returns the total.
  int64_t resample(Resampling scheme, const bits_t<T>* weights, uint64_t seed, uint64_t number, int64_t* out) {
    Row row = tiles_.measure(weights);
    if (row.invalid == 0 && row.largest != 0) sum_masses(weights, row);
    const int64_t total = total_of(row, n_);
    if (total <= 0) {
      std::fill(out, out + num_samples_, -1);
    } else if (scheme == Resampling::kResidual) {
      residual(row.total, seed, number, out);
    } else {
      auto make = scheme == Resampling::kSystematic ? &Positions::systematic : &Positions::stratified;
      ancestors(up_to_.get(), make(row.total, uint64_t(num_samples_), seed, number), num_samples_, out);
    }
    return total;
  }

 private:
  void sum_masses(const bits_t<T>* weights, Row& row) {
    const int64_t exponent = mass_exponent<T>(row, n_);
    tiles_.each([&](int64_t t, int64_t begin, int64_t count) {
      before_[t] = mass_tile<T>(weights + begin, count, exponent, up_to_.get() + begin);
    });
    row.total = exclusive_scan(before_);
    tiles_.each([&](int64_t t, int64_t begin, int64_t count) { sum_up(up_to_.get() + begin, count, before_[t]); });
  }

  void ancestors(const uint64_t* up_to, const Positions& positions, int64_t count, int64_t* out) const {
    const int64_t length = n_ + count, stretches = (length + kParticles - 1) / kParticles;
    share_out(stretches, kMergeNanoseconds * kParticles, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kParticles, end = std::min(last * kParticles, length);
      const int64_t i = seek_ancestor(up_to, n_, positions, count, begin);
      const int64_t i_end = last == stretches ? n_ : seek_ancestor(up_to, n_, positions, count, end);
      merge_ancestors(up_to, positions, i, begin - i, std::min(end - i_end, count), out);
    });
  }

  void residual(uint64_t total, uint64_t seed, uint64_t number, int64_t* out) {
    const Copies copies(total, uint64_t(num_samples_));
    if (!copied_) {
      copied_.reset(new uint64_t[n_]);
      units_.reset(new uint64_t[n_]);
      first_.reset(new int64_t[std::min(n_, num_samples_)]);
    }
    tiles_.each([&](int64_t t, int64_t begin, int64_t count) { count_copies(copies, t, begin, count); });
    const uint64_t copied = exclusive_scan(copied_before_), rest = uint64_t(num_samples_) - copied;
    tiles_.each([&](int64_t t, int64_t begin, int64_t count) { lay_residues(copies, t, begin, count); });
    if (copied > 0) ancestors(copied_.get(), Positions::counting(copied), int64_t(copied), out);
    const int64_t batches = (int64_t(rest) + kDraws - 1) / kDraws;
    share_out(batches, kPlaceNanoseconds * kDraws, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * kDraws; k < std::min(end * kDraws, int64_t(rest)); k += kDraws) {
        int64_t count = std::min(kDraws, int64_t(rest) - k);
        draw_residues(seed, number, uint64_t(k), count, rest, total, out + int64_t(copied) + k);
      }
    });
  }

  // The copies up to each particle of a tile, from the tile's beginning.
  void count_copies(const Copies& copies, int64_t t, int64_t begin, int64_t count) {
    uint64_t sum = 0, before = before_[t];
    for (int64_t i = begin; i < begin + count; ++i) {
      copied_[i] = sum += copies.of(up_to_[i] - before).whole;
      before = up_to_[i];
    }
    copied_before_[t] = sum;
  }

  // Where the residues of a tile end; its copies are counted from the row's beginning.
  void lay_residues(const Copies& copies, int64_t t, int64_t begin, int64_t count) {
    uint64_t before = before_[t];
    Bucket bucket = Bucket::after(before, copied_before_[t], copies);
    for (int64_t i = begin; i < begin + count; ++i) {
      copied_[i] += copied_before_[t];
      Bucket next = bucket.plus(copies.of(up_to_[i] - before).rest, copies.total);
      if (next.number != bucket.number) first_[next.number] = i;
      units_[i] = next.units;
      bucket = next;
      before = up_to_[i];
    }
  }

  // What a batch reads is known before the first read, so that the reads overlap.
  void draw_residues(
      uint64_t seed, uint64_t number, uint64_t start, int64_t count, uint64_t rest, uint64_t total,
      int64_t* out) const {
    RandomBlock<kDraws> random;
    random_bits(seed, number, start, random);
    ResidueDraw draw[kDraws];
    for (int64_t k = 0; k < count; ++k) {
      draw[k] = ResidueDraw(random.low[k], random.high[k], rest, total);
      __builtin_prefetch(first_.get() + draw[k].bucket);
    }
    for (int64_t k = 0; k < count; ++k) __builtin_prefetch(units_.get() + first_[draw[k].bucket]);
    for (int64_t k = 0; k < count; ++k) out[k] = draw[k].particle(rest, units_.get(), first_.get(), n_);
  }

  int64_t n_, num_samples_;
  RowTiles<T> tiles_;
  std::vector<uint64_t> before_, copied_before_;
  std::unique_ptr<uint64_t[]> up_to_, copied_, units_;
  std::unique_ptr<int64_t[]> first_;
};

template <class T>
struct ResampleRows {
  Resampling scheme;
  const bits_t<T>* weights;
  uint64_t seed;
  int64_t n, num_samples;
  int64_t *out, *total;

  void operator()(int64_t first, int64_t last) const {
    RowResampler<T> resampler(n, num_samples);
    for (int64_t row = first; row < last; ++row) {
      int64_t* drawn = out + row * num_samples;
      total[row] = resampler.resample(scheme, weights + row * n, seed, uint64_t(row), drawn);
    }
  }
};

template <class T>
void resample_rows(const ResampleCall& call) {
  const int64_t rows = call.weights.rows, n = call.weights.n, num_samples = call.num_samples;
  const bits_t<T>* weights = call.weights.bits<T>();
  int64_t* total = mutable_typed_data<int64_t>(call.total);
  const ResampleRows<T> resample{
      call.scheme, weights, *unsigned_data(call.seed), n, num_samples, mutable_typed_data<int64_t>(call.out), total};
  share_rows(rows, kParticleNanoseconds * double(n) + kMergeNanoseconds * double(n + num_samples), resample);
  const int64_t row = std::find_if(total, total + rows, [](int64_t t) { return t <= 0; }) - total;
  if (row < rows) refuse(call.op, fault_of_state<T>(total[row], weights, n, row, call.weights.one_row));
}

Tensor resample(const char* op, Resampling scheme, const Tensor& weights, const Tensor& seed, int64_t num_samples) {
  const ResampleCall call = prepare_resample(op, scheme, weights, seed, num_samples);
  dispatch_weights(op, call.weights, [&](auto type) { resample_rows<typename decltype(type)::type>(call); });
  return call.out;
}

Tensor systematic_resample_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  return resample("systematic_resample", Resampling::kSystematic, weights, seed, num_samples);
}
Tensor stratified_resample_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  return resample("stratified_resample", Resampling::kStratified, weights, seed, num_samples);
}
Tensor residual_resample_cpu(Tensor weights, Tensor seed, int64_t num_samples) {
  return resample("residual_resample", Resampling::kResidual, weights, seed, num_samples);
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("systematic_resample", TORCH_BOX(&systematic_resample_cpu));
  m.impl("stratified_resample", TORCH_BOX(&stratified_resample_cpu));
  m.impl("residual_resample", TORCH_BOX(&residual_resample_cpu));
}

}  // namespace ste_ops
