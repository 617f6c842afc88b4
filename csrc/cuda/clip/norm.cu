// The norm of a tensor list: a partial result for each block of kBlock elements, then one block that joins them.
#include "cuda/clip/norm.cuh"

#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kFinishThreads = 1024;
// A block of the norms of each holds three looks at four types: few threads, so that their registers suffice.
constexpr int kNormsThreads = 256;

// Totals that the kernels of one norm hand on: state[0] is the first pass's, state[1] the largest magnitude.
// A kernel of the second look gets them and leaves where the first total is in range.
__device__ inline bool nothing_to_do(const double* state) { return state != nullptr && !left_range(state[0]); }

template <class Terms>
__device__ Terms rescaled(Terms terms, const double*) {
  return terms;
}
__device__ inline ScaledSquares rescaled(ScaledSquares, const double* state) { return ScaledSquares::scaled(state[1]); }
__device__ inline Powers rescaled(Powers terms, const double* state) {
  return state == nullptr ? terms : terms.scaled(state[1]);
}

// Moves: reads n * T, writes 8 * blocks.
// Moves (largest): reads n * T + 8, writes 8 * blocks.
// Moves (second look): reads n * T + 16, writes 8 * blocks.
// Moves (nothing to do): reads 8, writes 0.
template <class Terms, int N>
__global__ void __launch_bounds__(kThreads) norm_partials_kernel(
    const __grid_constant__ TensorTable<N> table, Terms terms, double* partials, const double* state) {
  if (nothing_to_do(state)) return;
  terms = rescaled(terms, state);
  const int t = find_item(table);
  const int64_t begin = int64_t(blockIdx.x - table.first_block[t]) * kBlock;
  with_storage(table.storage[t], [&](auto type) {
    using T = typename decltype(type)::type;
    double total =
        dense_total(terms, static_cast<const T*>(table.data[t]) + begin, at_most(table.numel[t] - begin, kBlock));
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
  });
}

// A tensor that is not dense has a launch of its own.
// Moves: reads n * T, writes 8 * blocks.
// Moves (largest): reads n * T + 8, writes 8 * blocks.
// Moves (second look): reads n * T + 16, writes 8 * blocks.
// Moves (nothing to do): reads 8, writes 0.
template <class Terms>
__global__ void __launch_bounds__(kThreads) strided_partials_kernel(
    const void* data, int64_t numel, Storage storage, const __grid_constant__ Strided layout, Terms terms,
    double* partials, const double* state) {
  if (nothing_to_do(state)) return;
  terms = rescaled(terms, state);
  const int64_t begin = int64_t(blockIdx.x) * kBlock, end = at_most(numel, begin + kBlock);
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    double total = strided_total(terms, static_cast<const T*>(data), layout, begin, end);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
  });
}

enum class Pass { kFirst, kLargest, kScaled };

// One block: the total of all partial results, and the norm.
// Moves: reads 8 * blocks, writes 8 + norm; norm is 4 or 8.
// Moves (largest): reads 8 * blocks + 8, writes 8.
// Moves (second look): reads 8 * blocks + 16, writes norm.
// Moves (nothing to do): reads 8, writes 0.
template <class Terms>
__global__ void __launch_bounds__(kFinishThreads) norm_finish_kernel(
    const double* partials, int64_t count, Terms terms, Pass pass, double* state, void* out, bool float64) {
  if (pass != Pass::kFirst && nothing_to_do(state)) return;
  double total = Terms::identity();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) total = Terms::combine(total, partials[i]);
  total = combine_block<Terms>(total);
  if (threadIdx.x != 0) return;
  if (pass == Pass::kLargest) {
    state[1] = total;
    return;
  }
  if (pass == Pass::kFirst) state[0] = total;
  if (pass == Pass::kScaled) terms = rescaled(terms, state);
  const double result = pass == Pass::kFirst || has_scale(state[1]) ? terms.finish(total) : state[1];
  if (float64) {
    *static_cast<double*>(out) = result;
  } else {
    *static_cast<float*>(out) = float(result);
  }
}

// The launches of one pass: the partial results, then the norm from them.
template <class Terms>
struct LaunchPartials {
  const Launcher& launch;
  Terms terms;
  double* partials;
  const double* state;

  template <int N>
  void operator()(const TensorTable<N>& table, TablePlace at) const {
    launch(norm_partials_kernel<Terms, N>, at.blocks, kThreads, table, terms, partials + at.first_block, state);
  }
  void operator()(const TensorData& t, TablePlace at) const {
    launch(
        strided_partials_kernel<Terms>, at.blocks, kThreads, t.data, t.numel, t.storage, *t.layout, terms,
        partials + at.first_block, state);
  }
};

template <class Terms>
void launch_pass(const Launches& over, Terms terms, Pass pass, double* partials, double* state, const Tensor& out) {
  over.run(LaunchPartials<Terms>{over.launch(), terms, partials, pass == Pass::kFirst ? nullptr : state});
  over.launch()(
      norm_finish_kernel<Terms>, 1, kFinishThreads, partials, over.blocks().block_count(), terms, pass, state,
      out.mutable_data_ptr(), out.scalar_type() == ScalarType::Double);
}

// The norm of one tensor from its partial results. Where those left the range this one block reads the tensor
// again, twice: slow, and met only by float64 and by powers other than 1 and 2, in a tensor whose norm is tiny or
// huge.
template <class Terms, class TotalOf>
__device__ double norm_of_one(Terms terms, const double* partials, int64_t count, bool may_leave, TotalOf total_of) {
  double total = Terms::identity();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) total = Terms::combine(total, partials[i]);
  total = combine_block<Terms>(total);
  return norm_from(terms, total, may_leave, total_of);
}

// A block for each tensor of the table.
// Moves: reads 8 * blocks, writes 8 * launched; a tensor whose total left the range is read, twice.
template <class Terms, int N>
__global__ void __launch_bounds__(kNormsThreads)
    norms_kernel(const __grid_constant__ TensorTable<N> table, Terms terms, const double* partials, double* norms) {
  const int t = blockIdx.x;
  const bool may_leave = may_leave_range<Terms>(table.storage[t] == Storage::kDouble);
  const int64_t blocks = table.first_block[t + 1] - table.first_block[t];
  const double norm = norm_of_one(terms, partials + table.first_block[t], blocks, may_leave, [&](auto other) {
    double total = decltype(other)::identity();
    with_storage(table.storage[t], [&](auto type) {
      using T = typename decltype(type)::type;
      const T* x = static_cast<const T*>(table.data[t]);
      for (int64_t i = threadIdx.x; i < table.numel[t]; i += blockDim.x) {
        total = other.combine(total, double(other.term(load(x[i]))));
      }
      total = combine_block<decltype(other)>(total);
    });
    return total;
  });
  if (threadIdx.x == 0) norms[t] = norm;
}

// Moves: reads 8 * blocks, writes 8; a tensor whose total left the range is read, twice.
template <class Terms>
__global__ void __launch_bounds__(kNormsThreads) strided_norms_kernel(
    const void* data, int64_t numel, Storage storage, const __grid_constant__ Strided layout, Terms terms,
    const double* partials, int64_t blocks, double* norms) {
  const bool may_leave = may_leave_range<Terms>(storage == Storage::kDouble);
  const double norm = norm_of_one(terms, partials, blocks, may_leave, [&](auto other) {
    double total = 0;
    with_storage(storage, [&](auto type) {
      using T = typename decltype(type)::type;
      total = strided_total(other, static_cast<const T*>(data), layout, 0, numel);
    });
    return total;
  });
  if (threadIdx.x == 0) *norms = norm;
}

template <class Terms>
struct LaunchNorms {
  const Launcher& launch;
  Terms terms;
  const double* partials;
  double* norms;

  template <int N>
  void operator()(const TensorTable<N>& table, TablePlace at) const {
    launch(
        norms_kernel<Terms, N>, table.count, kNormsThreads, table, terms, partials + at.first_block,
        norms + at.first_item);
  }
  void operator()(const TensorData& t, TablePlace at) const {
    launch(
        strided_norms_kernel<Terms>, 1, kNormsThreads, t.data, t.numel, t.storage, *t.layout, terms,
        partials + at.first_block, at.blocks, norms + at.first_item);
  }
};

// Where the norm of each tensor of the list lies among those of the launched tensors; -1 for one without elements.
constexpr int kPlaces = kTableBytes / 4 - 1;
struct Places {
  int32_t of[kPlaces];
  int count;
};

// Moves: reads 8 * launched, writes tensors * norm; norm is 4 or 8.
__global__ void __launch_bounds__(kThreads) place_norms_kernel(
    const __grid_constant__ Places places, const double* norms, void* out, int64_t begin, bool float64) {
  for (int i = threadIdx.x; i < places.count; i += blockDim.x) {
    const double norm = places.of[i] < 0 ? 0 : norms[places.of[i]];
    if (float64) {
      static_cast<double*>(out)[begin + i] = norm;
    } else {
      static_cast<float*>(out)[begin + i] = float(norm);
    }
  }
}

// Whether the norm takes the second look is decided on the device: three launches more, which return at once, where the
// dtypes and p cannot rule it out.
struct LaunchPasses {
  const Launches& over;
  bool has_float64;
  const Tensor& out;
  double *state, *partials, *norms;

  template <class Terms>
  void operator()(Terms terms) const {
    launch_pass(over, terms, Pass::kFirst, partials, state, out);
    if (norms != nullptr) over.run(LaunchNorms<Terms>{over.launch(), terms, partials, norms});
    if constexpr (may_leave_range<Terms>(true)) {
      if (!may_leave_range<Terms>(has_float64)) return;
      launch_pass(over, Largest{}, Pass::kLargest, partials, state, out);
      launch_pass(over, terms.scaled(1), Pass::kScaled, partials, state, out);
    }
  }
};

// The norms of the launched tensors, as the tensors of the list ask for them.
void place_norms(const Launches& over, const std::vector<int32_t>& places, const double* norms, const Tensor& out) {
  std::vector<int32_t> launched(over.order().size());
  for (size_t t = 0; t < launched.size(); ++t) launched[over.order()[t]] = int32_t(t);
  for (size_t begin = 0; begin < places.size(); begin += kPlaces) {
    Places part;
    part.count = int(std::min<size_t>(kPlaces, places.size() - begin));
    for (int i = 0; i < part.count; ++i) {
      const int32_t place = places[begin + i];
      part.of[i] = place < 0 ? -1 : launched[place];
    }
    over.launch()(
        place_norms_kernel, 1, kThreads, part, norms, out.mutable_data_ptr(), int64_t(begin),
        out.scalar_type() == ScalarType::Double);
  }
}

}  // namespace

void enqueue_norm(const Launches& over, double p, bool has_float64, const Tensor& out, double* norms) {
  const int64_t blocks = over.blocks().block_count();
  if (blocks == 0) {
    torch::stable::fill_(out, 0.0);
    return;
  }
  Tensor workspace = empty_vector(blocks + 2, ScalarType::Double, out);
  double* state = static_cast<double*>(workspace.mutable_data_ptr());
  visit_norm(p, LaunchPasses{over, has_float64, out, state, state + 2, norms});
}

void enqueue_norms(const Launches& over, const TensorList& list, double p, const Norms& norms) {
  if (norms.each.numel() == 0) return enqueue_norm(over, p, list.has_float64, norms.total);
  Tensor launched = empty_vector(int64_t(list.items.size()), ScalarType::Double, norms.total);
  double* of_launched = static_cast<double*>(launched.mutable_data_ptr());
  enqueue_norm(over, p, list.has_float64, norms.total, of_launched);
  place_norms(over, list.places, of_launched, norms.each);
}

namespace {

void total_norm_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const TotalNorm call(stack, Placed::kAnywhere);
  const Norms norms(call.tensors, call.each);
  const Launcher launch(norms.total);
  enqueue_norms(Launches(launch, call.tensors.items), call.tensors, call.p, norms);
  norms.give(stack);
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("total_norm", &total_norm_cuda); }

}  // namespace ste_ops
