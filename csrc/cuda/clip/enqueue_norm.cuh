// The norm of many gradients: a partial result for each block of kBlock elements, then one block that joins them.
#pragma once

#include "cuda/clip/norm.cuh"

namespace ste_ops {

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
__global__ void __launch_bounds__(kThreads)
    norm_partials_kernel(const __grid_constant__ Table<N> table, Terms terms, double* partials, const double* state) {
  if (nothing_to_do(state)) return;
  terms = rescaled(terms, state);
  const int g = find_tensor(table);
  const int64_t begin = int64_t(blockIdx.x - table.first_block[g]) * kBlock;
  with_storage(table.storage[g], [&](auto type) {
    using T = typename decltype(type)::type;
    double total =
        dense_total(terms, static_cast<const T*>(table.data[g]) + begin, at_most(table.numel[g] - begin, kBlock));
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
  });
}

// A gradient that is not dense has a launch of its own.
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

template <class Terms>
void launch_pass(const Launches& over, Terms terms, Pass pass, double* partials, double* state, const Tensor& out) {
  const double* earlier = pass == Pass::kFirst ? nullptr : state;
  over.run(
      [&](const auto& table, int64_t blocks, int64_t first, int64_t) {
        constexpr int N = sizeof(table.numel) / sizeof(int64_t);
        over.launch()(norm_partials_kernel<Terms, N>, blocks, kThreads, table, terms, partials + first, earlier);
      },
      [&](const TensorData& g, int64_t blocks, int64_t first, int64_t) {
        over.launch()(
            strided_partials_kernel<Terms>, blocks, kThreads, static_cast<const void*>(g.data), g.numel, g.storage,
            *g.layout, terms, partials + first, earlier);
      });
  over.launch()(
      norm_finish_kernel<Terms>, 1, kFinishThreads, static_cast<const double*>(partials), over.blocks().block_count(),
      terms, pass, state, out.mutable_data_ptr(), out.scalar_type() == ScalarType::Double);
}

// The norm of one gradient from its partial results. Where those left the range this one block reads the gradient
// again, twice: slow, and met only by float64 and by powers other than 1 and 2, in a gradient whose norm is tiny or
// huge.
template <class Terms, class TotalOf>
__device__ double norm_of_one(Terms terms, const double* partials, int64_t count, bool may_leave, TotalOf total_of) {
  double total = Terms::identity();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) total = Terms::combine(total, partials[i]);
  total = combine_block<Terms>(total);
  return norm_from(terms, total, may_leave, total_of);
}

// A block for each gradient of the table.
// Moves: reads 8 * blocks, writes 8 * gradients; a gradient whose total left the range is read, twice.
template <class Terms, int N>
__global__ void __launch_bounds__(kNormsThreads)
    norms_kernel(const __grid_constant__ Table<N> table, Terms terms, const double* partials, double* norms) {
  const int g = blockIdx.x;
  const bool may_leave = may_leave_range<Terms>(table.storage[g] == Storage::kDouble);
  const int64_t blocks = table.first_block[g + 1] - table.first_block[g];
  const double norm = norm_of_one(terms, partials + table.first_block[g], blocks, may_leave, [&](auto other) {
    double total = decltype(other)::identity();
    with_storage(table.storage[g], [&](auto type) {
      using T = typename decltype(type)::type;
      const T* x = static_cast<const T*>(table.data[g]);
      for (int64_t i = threadIdx.x; i < table.numel[g]; i += blockDim.x) {
        total = other.combine(total, double(other.term(load(x[i]))));
      }
      total = combine_block<decltype(other)>(total);
    });
    return total;
  });
  if (threadIdx.x == 0) norms[g] = norm;
}

// Moves: reads 8 * blocks, writes 8; a gradient whose total left the range is read, twice.
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

// Where the norm of each tensor of the list lies among those of the launched gradients; -1 for one without elements.
constexpr int kPlaces = kLargeTable > 1000 ? 4000 : 500;
struct Places {
  int32_t of[kPlaces];
  int count;
};

// Moves: reads 8 * gradients, writes tensors * norm; norm is 4 or 8.
inline __global__ void __launch_bounds__(kThreads) place_norms_kernel(
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

template <class Terms>
void launch_norms(const Launches& over, Terms terms, const double* partials, double* norms) {
  over.run(
      [&](const auto& table, int64_t, int64_t first, int64_t gradient) {
        constexpr int N = sizeof(table.numel) / sizeof(int64_t);
        over.launch()(
            norms_kernel<Terms, N>, table.count, kNormsThreads, table, terms, partials + first, norms + gradient);
      },
      [&](const TensorData& g, int64_t blocks, int64_t first, int64_t gradient) {
        over.launch()(
            strided_norms_kernel<Terms>, 1, kNormsThreads, static_cast<const void*>(g.data), g.numel, g.storage,
            *g.layout, terms, partials + first, blocks, norms + gradient);
      });
}

// The norms of the launched gradients, as the tensors of the list ask for them.
inline void place_norms(
    const Launches& over, const std::vector<int32_t>& places, const double* norms, const Tensor& out) {
  std::vector<int32_t> launched(over.order().size());
  for (size_t g = 0; g < launched.size(); ++g) launched[over.order()[g]] = int32_t(g);
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

// Leaves the norm in `out`. Whether it takes the second look is decided on the device: three launches more, which
// return at once, where the dtypes and p cannot rule it out.
// With `norms` it leaves there that of each launched gradient too.
inline void enqueue_norm(const Launches& over, double p, bool has_float64, const Tensor& out, double* norms = nullptr) {
  const int64_t blocks = over.blocks().block_count();
  if (blocks == 0) {
    torch::stable::fill_(out, 0.0);
    return;
  }
  Tensor workspace = empty_vector(blocks + 2, ScalarType::Double, out);
  double* state = static_cast<double*>(workspace.mutable_data_ptr());
  double* partials = state + 2;
  visit_norm(p, [&](auto terms) {
    launch_pass(over, terms, Pass::kFirst, partials, state, out);
    if (norms != nullptr) launch_norms(over, terms, static_cast<const double*>(partials), norms);
    if constexpr (may_leave_range<decltype(terms)>(true)) {
      if (!may_leave_range<decltype(terms)>(has_float64)) return;
      launch_pass(over, Largest{}, Pass::kLargest, partials, state, out);
      launch_pass(over, terms.scaled(1), Pass::kScaled, partials, state, out);
    }
  });
}

inline Tensor enqueue_norms(const Launches& over, double p, const TensorList& gradients, const Tensor& out) {
  Tensor of_each = gradients.empty_norms();
  Tensor launched = empty_vector(int64_t(gradients.items.size()), ScalarType::Double, out);
  double* norms = static_cast<double*>(launched.mutable_data_ptr());
  enqueue_norm(over, p, gradients.has_float64, out, norms);
  place_norms(over, gradients.places, norms, of_each);
  return of_each;
}

}  // namespace ste_ops
