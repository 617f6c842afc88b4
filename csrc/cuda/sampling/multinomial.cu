// Draws without replacement: the least keys of each row, selected tile by tile or sorted.
#include "ops/sampling/multinomial.h"

#include <array>

#include "core/sampling/philox.h"
#include "cuda/sampling/fault.cuh"
#include "cuda/sampling/tiles.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// So many draws, or fewer, are selected tile by tile; for more all keys are sorted.
constexpr int64_t kMostSelected = 256;

// What is known of a row: how many weights are positive, and n - index of the first one that is no weight.
struct RowState {
  uint64_t positive, invalid;
};

// The key of weight i of a row; counts the weights that it passes.
// Moves: reads rows * n * T + 8 * rows + 8, writes 8 * rows.
template <class T>
struct KeySource {
  const bits_t<T>* weights;
  const uint64_t* seed;
  int64_t n;

  __device__ double key(int64_t row, int64_t i, RowState& state) const {
    bits_t<T> w = weights[row * n + i];
    state.positive += magnitude<T>(w) != 0;
    if (!is_weight<T>(w)) state.invalid = Greater()(state.invalid, uint64_t(n - i));
    return exponential_key<T>(w, low_bits(philox_draw(*seed, uint64_t(row), uint64_t(i))));
  }
  __device__ int64_t index(int64_t, int64_t i) const { return i; }
};

// The keys that an earlier pass has selected.
// Moves: reads 16 * rows * n, writes 0.
struct Selected {
  const double* keys;
  const int64_t* indices;
  int64_t n;

  __device__ double key(int64_t row, int64_t i, RowState&) const { return keys[row * n + i]; }
  __device__ int64_t index(int64_t row, int64_t i) const { return indices[row * n + i]; }
};

__device__ void add_state(RowState state, RowState& row) {
  state.positive = block_sum(state.positive);
  state.invalid = block_reduce(state.invalid, Greater(), uint64_t(0));
  if (threadIdx.x != 0 || (state.positive == 0 && state.invalid == 0)) return;
  atomicAdd(atomic(row.positive), static_cast<unsigned long long>(state.positive));
  if (state.invalid != 0) atomicMax(atomic(row.invalid), static_cast<unsigned long long>(state.invalid));
}

// A bitonic sort by the whole block of a power of two keys in shared memory: ascending by key, equal keys by index.
__device__ void sort_tile(double* keys, int64_t* indices, int64_t count) {
  for (int64_t size = 2; size <= count; size *= 2) {
    for (int64_t stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int64_t t = threadIdx.x; t < count / 2; t += blockDim.x) {
        int64_t a = 2 * t - (t & (stride - 1)), b = a + stride;
        bool exchanged = keys[b] < keys[a] || (keys[b] == keys[a] && indices[b] < indices[a]);
        if (exchanged != ((a & size) == 0)) continue;
        double key = keys[a];
        keys[a] = keys[b];
        keys[b] = key;
        int64_t index = indices[a];
        indices[a] = indices[b];
        indices[b] = index;
      }
    }
  }
  __syncthreads();
}

// The `selected` least keys of every tile in order, +inf where it has fewer.
// Moves: reads Source, writes 16 * tiles * selected + Source.
template <class Source>
__global__ void __launch_bounds__(kSamplingThreads)
    select_kernel(Tiles tiles, Source source, int64_t selected, double* keys, int64_t* indices, RowState* states) {
  __shared__ double tile_keys[kSamplingTile];
  __shared__ int64_t tile_indices[kSamplingTile];
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t row = tiles.row(tile), begin = tiles.begin(tile), items = tiles.end(tile) - begin;
    int64_t count = 1;
    while (count < items || count < selected) count *= 2;
    RowState state{0, 0};
    for (int64_t i = threadIdx.x; i < count; i += kSamplingThreads) {
      tile_keys[i] = i < items ? source.key(row, begin + i, state) : bit_cast<double>(kInfinity<double>);
      tile_indices[i] = i < items ? source.index(row, begin + i) : INT64_MAX;
    }
    sort_tile(tile_keys, tile_indices, count);
    for (int64_t i = threadIdx.x; i < selected; i += kSamplingThreads) {
      keys[tile * selected + i] = tile_keys[i];
      indices[tile * selected + i] = tile_indices[i];
    }
    if (states != nullptr) add_state(state, states[row]);
    __syncthreads();  // the arrays are free for the next tile
  }
}

// Moves: reads rows * n * T + 8 * rows + 8, writes 8 * rows * n + 8 * rows.
template <class T>
__global__ void __launch_bounds__(kSamplingThreads)
    exponential_keys_kernel(Tiles tiles, KeySource<T> source, double* keys, RowState* states) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t row = tiles.row(tile);
    RowState state{0, 0};
    for (int64_t i = tiles.begin(tile) + threadIdx.x; i < tiles.end(tile); i += kSamplingThreads) {
      keys[tiles.offset(tile) + i] = source.key(row, i, state);
    }
    add_state(state, states[row]);
  }
}

// The first num_samples of each row of `per_row` keys in order.
// Moves: reads 16 * draws + 8 * rows, writes 8 * draws.
__global__ void drawn_kernel(
    int64_t rows, int64_t num_samples, int64_t per_row, const double* keys, const int64_t* indices,
    const RowState* states, int64_t* out) {
  for (int64_t i = grid_index(); i < rows * num_samples; i += grid_stride()) {
    const int64_t row = divided(i, num_samples), from = row * per_row + i - row * num_samples;
    const bool drawable = states[row].invalid == 0 && keys[from] < bit_cast<double>(kInfinity<double>);
    out[i] = drawable ? indices[from] : -1;
  }
}

// A row that cannot be drawn.
// Moves: reads 16 * rows, writes 0.
struct TooFew {
  const RowState* states;
  int64_t num_samples;
  __device__ bool operator()(int64_t row) const {
    return states[row].invalid != 0 || states[row].positive < uint64_t(num_samples);
  }
};

template <class T>
struct ReportDraws {
  const bits_t<T>* weights;
  const RowState* states;
  int64_t n, num_samples;
  bool one_row;

  __device__ Fault operator()(int64_t row) const {
    const int64_t number = one_row ? -1 : row;
    const RowState state = states[row];
    if (state.invalid != 0) {
      const int64_t index = n - int64_t(state.invalid);
      return Fault::weight(number, index, double(load(bit_cast<T>(weights[row * n + index]))));
    }
    return state.positive == 0 ? Fault::only_zeros(number)
                               : Fault::too_few(number, num_samples, int64_t(state.positive));
  }
};

struct Keys {
  Tensor keys, indices;
  double* key() const { return static_cast<double*>(keys.mutable_data_ptr()); }
  int64_t* index() const { return static_cast<int64_t*>(indices.mutable_data_ptr()); }
};

// Selects from tiles until each row has one tile left: every pass leaves an eighth or less.
template <class T>
Keys select(
    const Launcher& launch, const Tensor& like, KeySource<T> source, int64_t rows, int64_t selected, RowState* states) {
  auto allocate = [&](const Tiles& tiles) {
    int64_t numel = tiles.count() * selected;
    return Keys{empty_vector(numel, ScalarType::Double, like), empty_vector(numel, ScalarType::Long, like)};
  };
  Tiles tiles(rows, source.n);
  Keys from = allocate(tiles);
  launch(
      select_kernel<KeySource<T>>, std::min(tiles.count(), kMaxBlocks), kSamplingThreads, tiles, source, selected,
      from.key(), from.index(), states);
  while (tiles.per_row > 1) {
    const int64_t left = tiles.per_row * selected;
    tiles = Tiles(rows, left);
    Keys to = allocate(tiles);
    launch(
        select_kernel<Selected>, std::min(tiles.count(), kMaxBlocks), kSamplingThreads, tiles,
        Selected{from.key(), from.index(), left}, selected, to.key(), to.index(), static_cast<RowState*>(nullptr));
    from = to;
  }
  return from;
}

// All keys in order; a stable sort leaves equal ones in the order of their indices, which torch.topk does not promise.
template <class T>
Keys sort_all(const Launcher& launch, const Tensor& like, KeySource<T> source, int64_t rows, RowState* states) {
  const int64_t sizes[2] = {rows, source.n}, strides[2] = {source.n, 1};
  Tensor keys = empty_strided({sizes, 2}, {strides, 2}, ScalarType::Double, like);
  Tiles tiles(rows, source.n);
  launch(
      exponential_keys_kernel<T>, std::min(tiles.count(), kMaxBlocks), kSamplingThreads, tiles, source,
      static_cast<double*>(keys.mutable_data_ptr()), states);
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t(-1)), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

template <class T>
void draw_rows(const Launcher& launch, const DeferredErrors& errors, const DistinctDraws& call) {
  const int64_t rows = call.weights.rows, n = call.weights.n, k = call.num_samples;
  const Tensor& like = call.weights.dense;
  Tensor memory = torch::stable::new_zeros(like, {rows * int64_t(sizeof(RowState) / 8)}, ScalarType::Long);
  RowState* states = mutable_typed_data<RowState>(memory);
  const KeySource<T> source{call.weights.bits<T>(), unsigned_data(call.seed), n};
  const bool few = k <= kMostSelected;
  const Keys drawn = few ? select(launch, like, source, rows, k, states) : sort_all(launch, like, source, rows, states);
  launch(
      drawn_kernel, grid_for(rows * k), kSamplingThreads, rows, k, few ? k : n, drawn.key(), drawn.index(), states,
      mutable_typed_data<int64_t>(call.out));
  report_first_row(
      launch, like, rows, TooFew{states, k}, ReportDraws<T>{source.weights, states, n, k, call.weights.one_row},
      errors);
}

Tensor multinomial_without_replacement_cuda(Tensor weights, Tensor seed, int64_t num_samples, std::string op) {
  Launcher launch(weights);
  DeferredErrors errors(weights, permanent(op));
  const DistinctDraws call = prepare_distinct_draws(weights, seed, num_samples, op);
  dispatch_weights(
      op.c_str(), call.weights, [&](auto type) { draw_rows<typename decltype(type)::type>(launch, errors, call); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("multinomial_without_replacement", TORCH_BOX(&multinomial_without_replacement_cuda)); }

}  // namespace ste_ops
