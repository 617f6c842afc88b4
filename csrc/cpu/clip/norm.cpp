#include "cpu/clip/norm.h"

#include "cpu/clip/blocks.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Partial results that a block keeps side by side: four registers of AVX-512, and the same order of addition on every
// level of the instruction set.
constexpr int kLanes = 32;

// Bytes that a block asks for before it reads them. The processor's own prefetcher stops at every page of 4 KiB.
constexpr int64_t kPrefetch = 16384;

// The same for small tensors, which end before the prefetcher has understood: the start of one that comes later.
constexpr size_t kTensorsAhead = 8;
constexpr int64_t kStart = 1024;

inline void prefetch_start(const Blocks& blocks, const TensorData& current) {
  const size_t next = &current - &blocks.tensor(0) + kTensorsAhead;
  if (next >= blocks.count() || blocks.tensor(next).layout != nullptr) return;
  const TensorData& tensor = blocks.tensor(next);
  const int64_t bytes = std::min(tensor.numel * bytes_of_element(tensor.storage), kStart);
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(tensor.data) + b);
}

// A square of a float32 is exact in float64, so that a fused multiply-add rounds as the two operations do: the same
// bits where there is none.
template <bool fused, class Terms, class State, class T>
STE_OPS_INLINE State with_term(const Terms& terms, State total, T x) {
  if constexpr (fused && std::is_same<Terms, Squares>::value && !std::is_same<T, double>::value) {
    return __builtin_fma(double(load(x)), double(load(x)), total);
  } else {
    return Terms::combine(total, State(terms.term(load(x))));
  }
}

// The total of x[0, count); `readable` elements from x on belong to the tensor.
template <bool fused, class Terms, class T>
STE_OPS_INLINE double partial_lanes(const Terms& terms, const T* x, int64_t count, int64_t readable) {
  using State = typename Terms::template State<arithmetic_t<T>>;
  constexpr int64_t kAhead = kPrefetch / sizeof(T), kLine = 64 / sizeof(T);
  State lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = State(Terms::identity());
  int64_t i = 0;
  const int64_t ahead = std::min(count, readable - kAhead);
  for (; i + kLanes <= ahead; i += kLanes) {
    for (int64_t l = 0; l < kLanes; l += kLine) __builtin_prefetch(x + i + kAhead + l);
    for (int l = 0; l < kLanes; ++l) lanes[l] = with_term<fused>(terms, lanes[l], x[i + l]);
  }
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = with_term<fused>(terms, lanes[l], x[i + l]);
  }
  for (int l = 0; i + l < count; ++l) lanes[l] = with_term<fused>(terms, lanes[l], x[i + l]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = Terms::combine(lanes[l], lanes[l + width]);
  }
  return double(lanes[0]);
}

template <class Terms, class T>
STE_OPS_BELOW_AVX512 double partial_below_avx512(Terms terms, const T* x, int64_t count, int64_t readable) {
  return partial_lanes<false>(terms, x, count, readable);
}

#ifdef STE_OPS_AVX512
template <class Terms, class T>
STE_OPS_AVX512 double partial_avx512(Terms terms, const T* x, int64_t count, int64_t readable) {
  return partial_lanes<true>(terms, x, count, readable);
}
#endif

template <class Terms, class T>
double partial_loop(Terms terms, const T* x, int64_t count, int64_t readable) {
#ifdef STE_OPS_AVX512
  if (has_avx512()) return partial_avx512(terms, x, count, readable);
#endif
  return partial_below_avx512(terms, x, count, readable);
}

// Adds up the tiles of a block; changes none of them.
template <class Terms>
struct AddTiles {
  const Terms& terms;
  int64_t readable;  // elements from a dense block's first one on that belong to the tensor; 0 where it is strided
  double total = Terms::identity();

  template <class T>
  bool operator()(const T* x, int64_t count) {
    total = Terms::combine(total, partial_loop(terms, x, count, readable == 0 ? count : readable));
    return false;
  }
};

template <class Terms>
struct PartialOfBlock {
  const Blocks& blocks;
  const Terms& terms;
  double* partials;

  void operator()(const TensorData& tensor, int64_t begin, int64_t end, int64_t block) const {
    if (begin == 0) prefetch_start(blocks, tensor);
    AddTiles<Terms> add{terms, tensor.layout ? 0 : tensor.numel - begin};
    visit_storage(tensor.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      for_each_tile<T>(tensor, begin, end, add);
    });
    partials[block] = add.total;
  }
};

template <class Terms>
std::vector<double> partials_of(const Blocks& blocks, const Terms& terms) {
  std::vector<double> partials(blocks.block_count());
  for_each_block(blocks, PartialOfBlock<Terms>{blocks, terms, partials.data()});
  return partials;
}

template <class Terms>
double total_of(const std::vector<double>& partials, int64_t begin, int64_t end) {
  double total = Terms::identity();
  for (int64_t b = begin; b < end; ++b) total = Terms::combine(total, partials[b]);
  return total;
}

template <class Terms>
double total_of(const Blocks& blocks, const Terms& terms) {
  return total_of<Terms>(partials_of(blocks, terms), 0, blocks.block_count());
}

// The norm from the first look's total, or from a second one where that left the range.
template <class Terms>
double norm_from(const Blocks& blocks, const Terms& terms, double total, bool has_float64) {
  if constexpr (may_leave_range<Terms>(true)) {
    if (may_leave_range<Terms>(has_float64) && left_range(total)) {
      const double largest = total_of(blocks, Largest{});
      if (!has_scale(largest)) return largest;
      const auto scaled = terms.scaled(largest);
      return scaled.finish(total_of(blocks, scaled));
    }
  }
  return terms.finish(total);
}

struct NormOfBlocks {
  const Blocks& blocks;
  bool has_float64;
  double* of_each;

  template <class Terms>
  double operator()(const Terms& terms) const {
    const std::vector<double> partials = partials_of(blocks, terms);
    for (size_t t = 0; of_each != nullptr && t < blocks.count(); ++t) {
      const TensorData& tensor = blocks.tensor(t);
      const double total = total_of<Terms>(partials, blocks.first_block(t), blocks.first_block(t + 1));
      of_each[t] = norm_from(Blocks(&tensor, 1), terms, total, tensor.storage == Storage::kDouble);
    }
    return norm_from(blocks, terms, total_of<Terms>(partials, 0, blocks.block_count()), has_float64);
  }
};

// A row of one block needs no list of blocks. -1 where the total left the range.
template <class T>
struct NormOfShortRow {
  const T* x;
  int64_t length;

  template <class Terms>
  double operator()(const Terms& terms) const {
    const double total = partial_loop(terms, x, length, length);
    return may_leave_range<Terms>(sizeof(T) == 8) && left_range(total) ? -1 : terms.finish(total);
  }
};

}  // namespace

double norm_of_blocks(const Blocks& blocks, double p, bool has_float64, double* of_each) {
  if (blocks.numel() == 0) return 0;
  return visit_norm(p, NormOfBlocks{blocks, has_float64, of_each});
}

double norm_of_row(const void* x, int64_t length, Storage storage, double p) {
  if (length <= kBlock) {
    const double norm = visit_storage(storage, [&](auto type) {
      using T = typename decltype(type)::type;
      return visit_norm(p, NormOfShortRow<T>{static_cast<const T*>(x), length});
    });
    if (!(norm < 0)) return norm;
  }
  const TensorData row{const_cast<void*>(x), length, nullptr, storage};
  return norm_of_blocks(Blocks(&row, 1), p, storage == Storage::kDouble);
}

Norms norms_of(const TensorList& list, const Blocks& blocks, double p, bool each) {
  const Norms norms(list, each);
  std::vector<double> of_each(each ? blocks.count() : 0);
  write_norm(norms.total, 0, norm_of_blocks(blocks, p, list.has_float64, each ? of_each.data() : nullptr));
  for (size_t i = 0; each && i < list.places.size(); ++i) {
    const int32_t place = list.places[i];
    write_norm(norms.each, int64_t(i), place < 0 ? 0 : of_each[place]);
  }
  return norms;
}

namespace {

void total_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const TotalNorm call(stack, Placed::kOnCpu);
  norms_of(call.tensors, Blocks(call.tensors.items), call.p, call.each).give(stack);
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("total_norm", &total_norm_cpu); }

}  // namespace ste_ops
