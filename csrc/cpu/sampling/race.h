// The least keys of a race (core/sampling/exponential.h). Most weights lose by their random bits alone: with v uniform
// the exponential -log(1 - v) is at least v, so that v > threshold * w loses without a logarithm.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "core/sampling/exponential.h"
#include "cpu/sampling/draws.h"
#include "cpu/share.h"

namespace ste_ops {
namespace {

struct Runner {
  double key;
  int64_t index;
  // Equal keys fall by index, so that who wins is a function of weights and seed.
  friend bool operator<(const Runner& a, const Runner& b) {
    return a.key < b.key || (a.key == b.key && a.index < b.index);
  }
};

// Weights of one pass.
constexpr int64_t kHeat = 8 * kDraws;
// Draws of one pass where the row has no more of them.
constexpr int64_t kFewDraws = 16;

// What one pass has seen.
struct Heat {
  int64_t running = 0, positive = 0;
  bool invalid = false;
  double key[kHeat];
  int64_t index[kHeat];
};

// exp(threshold), and a little more for what is rounded here and in the keys; never a denormal, which a processor may
// flush to zero.
inline double bound_of(double threshold) { return std::max(std::exp(threshold) * (1 + 1e-6), 1e-290); }

// The keys of all weights whose key may be at most the threshold; infinite where the weight is zero. If the bound
// overflows, nobody loses early. What a product loses by underflow is less than the slack, and a denormal weight, which
// a processor may flush to zero, never loses early.
// Everything in it is inlined, or the clones would call what was compiled once for the baseline.
template <class T, int64_t kLanes>
STE_OPS_CLONES __attribute__((flatten)) void run_heat(
    const bits_t<T>* weights, uint64_t seed, uint64_t row, int64_t begin, int64_t end, double bound, Heat& heat) {
  constexpr double kSlack = 0x1p-40;
  constexpr bits_t<T> kLeastNormal = bits_t<T>((uint64_t(1) << Format<T>::fraction) - 1);
  int64_t running = 0, positive = 0;
  bits_t<T> invalid = 0;
  for (int64_t start = begin; start < end; start += kLanes) {
    RandomBlock<kLanes> random;
    philox_block(seed, row, uint64_t(start), random);
    bits_t<T> weight[kLanes];
    const int64_t count = std::min(kLanes, end - start);
    for (int64_t i = 0; i < kLanes; ++i) weight[i] = i < count ? weights[start + i] : bits_t<T>(0);
    uint64_t alive[kLanes], some = 0;
    for (int64_t i = 0; i < kLanes; ++i) {
      double v = bit_cast<double>(random.low[i] >> 12 | 0x3ff0000000000000u) - 1;
      bool denormal = bits_t<T>(magnitude<T>(weight[i]) - 1) < kLeastNormal;
      alive[i] = denormal | !(v > bound * double(load(bit_cast<T>(weight[i]))) + kSlack);
      some |= alive[i];
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      positive += magnitude<T>(weight[i]) != 0;
      invalid |= bits_t<T>(!is_weight<T>(weight[i]));
    }
    if (some == 0) continue;
    uint64_t bits[kLanes];
    bits_t<T> of[kLanes];
    int64_t survivors = 0;
    for (int64_t i = 0; i < count; ++i) {
      bits[survivors] = random.low[i];
      of[survivors] = weight[i];
      heat.index[running + survivors] = start + i;
      survivors += int64_t(alive[i]);
    }
    for (int64_t i = 0; i < survivors; ++i) heat.key[running + i] = exponential_key<T>(of[i], bits[i]);
    running += survivors;
  }
  heat.running = running;
  heat.positive = positive;
  heat.invalid = invalid != 0;
}

// Keeps the k least of a stretch, and about as many others until it drops those that cannot be among the k.
class Least {
 public:
  // Only keys of at most `threshold` are kept.
  Least(int64_t k, double threshold) : k_(k), threshold_(threshold), bound_(bound_of(threshold)) {}

  template <class T>
  void run(const bits_t<T>* weights, uint64_t seed, uint64_t row, int64_t begin, int64_t end) {
    Heat heat;
    kept.reserve(size_t(std::min(end - begin, 2 * k_ + 2 * kHeat)));
    for (int64_t start = begin; start < end; start += kHeat) {
      const int64_t stop = std::min(start + kHeat, end);
      if (end - begin <= kFewDraws) {
        run_heat<T, kFewDraws>(weights, seed, row, start, stop, bound_, heat);
      } else {
        run_heat<T, kDraws>(weights, seed, row, start, stop, bound_, heat);
      }
      positive += heat.positive;
      invalid |= heat.invalid;
      for (int64_t i = 0; i < heat.running; ++i) {
        if (heat.key[i] <= threshold_ && heat.key[i] < std::numeric_limits<double>::infinity())
          kept.push_back({heat.key[i], heat.index[i]});
      }
      if (int64_t(kept.size()) >= 2 * k_ + kHeat) drop();
    }
  }

  std::vector<Runner> kept;
  int64_t positive = 0;
  bool invalid = false;

 private:
  void drop() {
    std::nth_element(kept.begin(), kept.begin() + (k_ - 1), kept.end());
    kept.resize(size_t(k_));
    threshold_ = kept.back().key;
    bound_ = bound_of(threshold_);
  }

  int64_t k_;
  double threshold_, bound_;
};

// A threshold that k keys, and more than enough of them, are expected to stay below: guessed from the keys of some.
template <class T>
double guess_threshold(const bits_t<T>* weights, uint64_t seed, uint64_t row, int64_t n, int64_t k) {
  constexpr int64_t kGuessed = 8192;
  const double infinity = std::numeric_limits<double>::infinity();
  const double expected = double(k) / double(n) * kGuessed;
  const int64_t rank = int64_t(expected + 5 * std::sqrt(expected) + 10);
  if (n < 8 * kGuessed || rank >= kGuessed) return infinity;
  std::vector<double> keys(kGuessed);
  for (int64_t i = 0; i < kGuessed; ++i) {
    // One random place in each of kGuessed stretches: weights may be periodic.
    const int64_t stretch = n / kGuessed;
    const uint64_t place = (uint64_t(i) * 0x9E3779B97F4A7C15u >> 32) * uint64_t(stretch) >> 32;
    const int64_t index = i * stretch + int64_t(place);
    if (!is_weight<T>(weights[index])) return infinity;
    keys[size_t(i)] = exponential_key<T>(weights[index], low_bits(philox_draw(seed, row, uint64_t(index))));
  }
  std::nth_element(keys.begin(), keys.begin() + rank, keys.end());
  return keys[size_t(rank)];
}

// Buckets of keys, monotone in the key. The density of logarithmic keys grows exponentially towards the greatest; a
// power of their place among all flattens it. Sums and products of what is not negative stay monotone when rounded.
struct Buckets {
  int64_t count;
  double least, scale;
  int squarings = 0;

  Buckets(int64_t count, double least, double greatest)
      : count(count), least(least), scale(greatest > least ? 1 / (greatest - least) : 0) {
    while (squarings < 6 && double(2 << squarings) <= greatest - least) ++squarings;
  }
  int64_t operator()(double key) const {
    double place = (key - least) * scale;
    for (int i = 0; i < squarings; ++i) place *= place;
    return std::min(count - 1, int64_t(place * double(count)));
  }
};

constexpr int64_t kBucketBits = 16, kBucket = 64;
// What a runner takes on its way into a bucket, and to be sorted there.
constexpr double kBucketNanoseconds = 5, kSortNanoseconds = 25;

// The indices of the k least runners in the order of their keys.
class Finish {
 public:
  Finish(std::vector<Least>& parts, int64_t k, int64_t* out) : parts_(parts), k_(k), out_(out) {
    for (const Least& part : parts_) runners_ += int64_t(part.kept.size());
    if (runners_ <= 1 << 14) {
      few();
    } else {
      many();
    }
  }

 private:
  void few() {
    std::vector<Runner>& all = parts_[0].kept;
    for (size_t p = 1; p < parts_.size(); ++p) all.insert(all.end(), parts_[p].kept.begin(), parts_[p].kept.end());
    if (k_ < runners_) std::nth_element(all.begin(), all.begin() + (k_ - 1), all.end());
    std::sort(all.begin(), all.begin() + k_);
    for (int64_t i = 0; i < k_; ++i) out_[i] = all[size_t(i)].index;
  }

  void many() {
    double least = std::numeric_limits<double>::infinity(), greatest = -least;
    for (const Least& part : parts_) {
      for (const Runner& r : part.kept) {
        least = std::min(least, r.key);
        greatest = std::max(greatest, r.key);
      }
    }
    Buckets bucket(std::min(int64_t(1) << kBucketBits, runners_ / kBucket), least, greatest);
    // How many runners each bucket has in each part, then where they begin.
    std::vector<std::vector<int64_t>> place(parts_.size(), std::vector<int64_t>(size_t(bucket.count)));
    for_parts([&](int64_t p) {
      for (const Runner& r : parts_[size_t(p)].kept) ++place[size_t(p)][size_t(bucket(r.key))];
    });
    std::vector<int64_t> begin(1, 0);
    while (begin.back() < k_) {
      int64_t next = begin.back();
      for (auto& of_part : place) {
        int64_t count = of_part[begin.size() - 1];
        of_part[begin.size() - 1] = next;
        next += count;
      }
      begin.push_back(next);
    }
    const int64_t used = int64_t(begin.size()) - 1;
    std::unique_ptr<Runner[]> ordered(new Runner[size_t(begin.back())]);
    for_parts([&](int64_t p) {
      for (const Runner& r : parts_[size_t(p)].kept) {
        int64_t b = bucket(r.key);
        if (b < used) ordered[size_t(place[size_t(p)][size_t(b)]++)] = r;
      }
    });
    share_out(used, kSortNanoseconds * kBucket, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t from = begin[size_t(b)], to = begin[size_t(b) + 1];
        std::sort(ordered.get() + from, ordered.get() + to);
        for (int64_t i = from; i < std::min(to, k_); ++i) out_[i] = ordered[size_t(i)].index;
      }
    });
  }

  template <class F>
  void for_parts(const F& f) const {
    const int64_t parts = int64_t(parts_.size());
    share_out(parts, kBucketNanoseconds * double(runners_ / parts), [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) f(p);
    });
  }

  std::vector<Least>& parts_;
  int64_t k_, runners_ = 0;
  int64_t* out_;
};

}  // namespace
}  // namespace ste_ops
