// N:M sparsity: the weights of a group are ranked against each other, many groups side by side.
#include "ops/quantize/sparse.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/loop.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Groups that are ranked side by side, one to a lane.
constexpr int64_t kTileLanes = 128;

// A kept weight stays and a pruned one becomes 0.
struct Prune {
  static constexpr bool reads_grad = false;
};

// The gradient of a kept weight stays, that of a pruned one decays.
struct Decay {
  static constexpr bool reads_grad = true;
  double decay;
};

template <class T>
STE_OPS_INLINE void decay_row(Decay rule, const T* w, const T* grad, bits_t<T>* pruned, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    pruned[i] = bit_cast<bits_t<T>>(decayed(grad[i], w[i], arithmetic_t<T>(rule.decay)));
  }
}

// How the weights of a tile lie in memory: weight j of lane l at l * m + j where the groups lie side by side, and else
// at l + j * inner. M is m where that is known when compiling, and else 0.
template <int M, bool kSideBySide>
struct Tile {
  int64_t m, inner;
  template <class K>
  using Count = std::conditional_t<(M > 0), K, int32_t>;

  STE_OPS_INLINE int64_t count() const { return M > 0 ? M : m; }

  // f(lane, j, offset) in the order of memory, which is what lets a loop over them vectorize.
  template <class F>
  STE_OPS_INLINE void for_each(int64_t lanes, F f) const {
    if constexpr (kSideBySide) {
#pragma GCC ivdep
      for (int64_t l = 0; l < lanes; ++l) {
        for (int64_t j = 0; j < count(); ++j) f(l, j, l * count() + j);
      }
    } else {
      for (int64_t j = 0; j < count(); ++j) {
#pragma GCC ivdep
        for (int64_t l = 0; l < lanes; ++l) f(l, j, l + j * inner);
      }
    }
  }
};

// Memory for one tile, in rows of kTileLanes, one row for each place in a group.
template <class T>
struct Scratch {
  std::vector<magnitude_key_t<T>> keys;
  std::vector<bits_t<T>> keep, pruned;
  std::vector<T> w, grad, out;
  explicit Scratch(int64_t m, bool gathers)
      : keys(m * kTileLanes),
        keep(m * kTileLanes),
        pruned(m * kTileLanes),
        w(gathers * m * kTileLanes),
        grad(w),
        out(w) {}
};

template <class T, int M, bool kSideBySide, class Rule>
STE_OPS_INLINE void prune_tile(
    Rule rule, const T* w, const T* grad, T* out, Tile<M, kSideBySide> tile, int64_t n, int64_t lanes,
    Scratch<T>& scratch) {
  using U = bits_t<T>;
  using K = magnitude_key_t<T>;
  using Count = typename Tile<M, kSideBySide>::template Count<K>;
  K* keys = scratch.keys.data();
  U *keep = scratch.keep.data(), *pruned = scratch.pruned.data();
  tile.for_each(lanes, [&](int64_t l, int64_t j, int64_t i) { keys[j * kTileLanes + l] = magnitude_key(w[i]); });
  for (int64_t j = 0; j < tile.count(); ++j) {
    Count ahead[kTileLanes] = {};
    const K* own = keys + j * kTileLanes;
    for (int64_t k = 0; k < j; ++k) {
      for (int64_t l = 0; l < kTileLanes; ++l) ahead[l] += ranks_before(keys[k * kTileLanes + l], 0, own[l], 1);
    }
    for (int64_t k = j + 1; k < tile.count(); ++k) {
      for (int64_t l = 0; l < kTileLanes; ++l) ahead[l] += ranks_before(keys[k * kTileLanes + l], 1, own[l], 0);
    }
    for (int64_t l = 0; l < kTileLanes; ++l) keep[j * kTileLanes + l] = ahead[l] < Count(n) ? ~U(0) : U(0);
  }
  // On its own and row by row, because 16-bit arithmetic vectorizes on consecutive elements alone.
  if constexpr (Rule::reads_grad) {
    const bool dense = kSideBySide || (tile.inner == kTileLanes && lanes == kTileLanes);
    const int64_t rows = dense ? 1 : tile.count(), width = dense ? lanes * tile.count() : lanes;
    for (int64_t j = 0; j < rows; ++j) {
      decay_row(rule, w + j * tile.inner, grad + j * tile.inner, pruned + j * kTileLanes, width);
    }
  }
  U* bits = reinterpret_cast<U*>(out);
  const U* kept = reinterpret_cast<const U*>(Rule::reads_grad ? grad : w);
  tile.for_each(lanes, [&](int64_t l, int64_t j, int64_t i) {
    const U mask = keep[j * kTileLanes + l];
    bits[i] =
        Rule::reads_grad ? (kept[i] & mask) | (pruned[kSideBySide ? i : j * kTileLanes + l] & ~mask) : kept[i] & mask;
  });
}

// Groups [begin, end), each of them contiguous.
template <class T, int M, class Rule>
STE_OPS_CLONES void side_by_side_loop(
    Rule rule, const T* w, const T* grad, T* out, Neighbours g, int64_t begin, int64_t end, Scratch<T>& scratch) {
  const Tile<M, true> tile{g.m, 1};
  for (int64_t group = begin; group < end; group += kTileLanes) {
    const int64_t i = group * tile.count();
    if (group + kTileLanes <= end) {
      prune_tile(rule, w + i, grad + i, out + i, tile, g.n, kTileLanes, scratch);
    } else {
      prune_tile(rule, w + i, grad + i, out + i, tile, g.n, end - group, scratch);
    }
  }
}

// Groups whose weights lie far enough apart for a tile of their own.
template <class T, int M, class Rule>
STE_OPS_CLONES void wide_loop(
    Rule rule, const T* w, const T* grad, T* out, Neighbours g, int64_t begin, int64_t end, Scratch<T>& scratch) {
  const Tile<M, false> tile{g.m, g.inner};
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t l = 0; l < g.inner; l += kTileLanes) {
      const int64_t i = group * tile.count() * g.inner + l;
      prune_tile(rule, w + i, grad + i, out + i, tile, g.n, std::min(kTileLanes, g.inner - l), scratch);
    }
  }
}

// Moves `groups` blocks of m rows of `inner` weights to m rows of kTileLanes, or back.
template <bool kBack, class T>
STE_OPS_INLINE void regroup(const T* from, T* to, int64_t groups, int64_t m, int64_t inner) {
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t j = 0; j < m; ++j) {
      const int64_t block = (group * m + j) * inner, row = j * kTileLanes + group * inner;
      memcpy(to + (kBack ? block : row), from + (kBack ? row : block), inner * sizeof(T));
    }
  }
}

// Weights a few elements apart, as those of a convolution: several groups make one tile.
template <class T, int M, class Rule>
STE_OPS_CLONES void narrow_loop(
    Rule rule, const T* w, const T* grad, T* out, Neighbours g, int64_t begin, int64_t end, Scratch<T>& scratch) {
  const Tile<M, false> tile{g.m, kTileLanes};
  const int64_t per_tile = kTileLanes / g.inner;
  for (int64_t group = begin; group < end; group += per_tile) {
    const int64_t groups = std::min(per_tile, end - group), i = group * tile.count() * g.inner;
    regroup<false>(w + i, scratch.w.data(), groups, tile.count(), g.inner);
    if constexpr (Rule::reads_grad) regroup<false>(grad + i, scratch.grad.data(), groups, tile.count(), g.inner);
    prune_tile(
        rule, static_cast<const T*>(scratch.w.data()), static_cast<const T*>(scratch.grad.data()), scratch.out.data(),
        tile, g.n, kTileLanes, scratch);
    regroup<true>(static_cast<const T*>(scratch.out.data()), out + i, groups, tile.count(), g.inner);
  }
}

template <class T, int M, class Rule>
void prune_groups(Rule rule, const T* w, const T* grad, T* out, const Neighbours& g) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (g.m * g.inner));
  const bool narrow = g.inner > 1 && g.inner <= kTileLanes / 2;
  auto* loop = narrow ? narrow_loop<T, M, Rule> : wide_loop<T, M, Rule>;
  if (g.inner == 1) loop = side_by_side_loop<T, M, Rule>;
  torch::stable::parallel_for(0, g.groups, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(g.m, narrow);
    loop(rule, w, grad, out, g, begin, end, scratch);
  });
}

template <class T, class Rule>
void prune(Type<T>, Rule rule, const Pruning& call) {
  const T *w = const_data<T>(call.w), *grad = const_data<T>(call.grad);
  T* out = mutable_data<T>(call.out);
  if (call.groups.m == 4) return prune_groups<T, 4>(rule, w, grad, out, call.groups);
  prune_groups<T, 0>(rule, w, grad, out, call.groups);
}

Tensor sr_ste_cpu(Tensor w, int64_t n, int64_t m) {
  const Pruning call = prepare_sr_ste(w, n, m);
  dispatch_floating("sr_ste", "w", w, [&](auto type) { prune(type, Prune{}, call); });
  return call.out;
}

Tensor sr_ste_backward_cpu(Tensor grad, Tensor w, int64_t n, int64_t m, double decay) {
  const Pruning call = prepare_sr_ste_backward(grad, w, n, m);
  dispatch_floating("sr_ste_backward", "w", w, [&](auto type) { prune(type, Decay{decay}, call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("sr_ste", TORCH_BOX(&sr_ste_cpu));
  m.impl("sr_ste_backward", TORCH_BOX(&sr_ste_backward_cpu));
}

}  // namespace ste_ops
