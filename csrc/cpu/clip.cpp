#include <algorithm>

#include "../clip.h"
#include "../library.h"
#include "loop.h"

namespace ste_ops {
namespace {

// Partial results that a block keeps side by side: four registers of AVX-512, and the same order of addition on every
// level of the instruction set.
constexpr int kLanes = 32;

template <class Terms, class T>
STE_OPS_CLONES double partial_loop(Terms terms, const T* x, int64_t count) {
  using State = typename Terms::template State<arithmetic_t<T>>;
  State lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = State(Terms::identity());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = Terms::combine(lanes[l], State(terms.term(load(x[i + l]))));
  }
  for (int l = 0; i + l < count; ++l) lanes[l] = Terms::combine(lanes[l], State(terms.term(load(x[i + l]))));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = Terms::combine(lanes[l], lanes[l + width]);
  }
  return double(lanes[0]);
}

// x and out may be the same memory, which is why the compiler is told not to check.
template <class T>
STE_OPS_CLONES void scale_loop(const T* x, T* out, int64_t count, arithmetic_t<T> coefficient) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(load(x[i]) * coefficient);
}

template <class T>
STE_OPS_CLONES void clamp_loop(const T* x, T* out, int64_t count, arithmetic_t<T> bound) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = store<T>(clamp_magnitude(load(x[i]), bound));
}

template <class T>
STE_OPS_CLONES bool exceeds_loop(const T* x, int64_t count, arithmetic_t<T> bound) {
  int exceeds = 0;
  for (int64_t i = 0; i < count; ++i) exceeds |= magnitude(load(x[i])) > bound;
  return exceeds != 0;
}

// Elements that are worth a second thread: a core reads more in the time that it takes to wake another one.
constexpr int64_t kReduceGrain = 8 * kGrain;

// Elements gathered from a strided gradient at a time.
constexpr int64_t kTile = 2048;

// Calls f(element pointer, elements in a row, their stride) over elements [begin, end) of a strided tensor.
template <class T, class F>
void for_each_run(T* data, const Strided& layout, int64_t begin, int64_t end, F&& f) {
  const int64_t row = layout.sizes[layout.dims - 1], stride = layout.strides[layout.dims - 1];
  for (int64_t i = begin; i < end;) {
    int64_t count = std::min(end - i, row - i % row);
    f(data + layout.offset(i), count, stride);
    i += count;
  }
}

template <class T>
void gather(const Gradient& gradient, int64_t begin, int64_t end, T* tile) {
  for_each_run(static_cast<const T*>(gradient.data), *gradient.layout, begin, end,
               [&](const T* x, int64_t count, int64_t stride) {
                 for (int64_t i = 0; i < count; ++i) *tile++ = x[i * stride];
               });
}

template <class T>
void scatter(const Gradient& gradient, int64_t begin, int64_t end, const T* tile) {
  for_each_run(static_cast<T*>(gradient.data), *gradient.layout, begin, end, [&](T* x, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) x[i * stride] = *tile++;
  });
}

// Calls f(memory, count) over the elements [begin, end): on the gradient's own memory where it is dense, else on a tile
// gathered from it, which goes back where f returns true.
template <class T, class F>
void for_each_tile(const Gradient& gradient, int64_t begin, int64_t end, F&& f) {
  if (gradient.layout == nullptr) {
    f(static_cast<T*>(gradient.data) + begin, end - begin);
    return;
  }
  T tile[kTile];
  for (int64_t i = begin; i < end; i += kTile) {
    int64_t stop = std::min(end, i + kTile);
    gather(gradient, i, stop, tile);
    if (f(tile, stop - i)) scatter(gradient, i, stop, tile);
  }
}

// Calls f(gradient, begin, end, number of the block) for every block of every gradient, in parallel. Threads divide the
// elements, so that one large and many small gradients weigh what they should.
template <class F>
void for_each_block(const Blocks& blocks, const F& f) {
  torch::stable::parallel_for(0, blocks.numel(), kReduceGrain, [&](int64_t begin, int64_t end) {
    for (size_t g = blocks.find_element(begin); g < blocks.count() && blocks.first_element(g) < end; ++g) {
      const Gradient& gradient = blocks.gradient(g);
      int64_t start = blocks.first_element(g);
      int64_t block = start >= begin ? 0 : (begin - start + kBlock - 1) / kBlock;
      for (; block * kBlock < gradient.numel && start + block * kBlock < end; ++block) {
        f(gradient, block * kBlock, std::min(gradient.numel, (block + 1) * kBlock), blocks.first_block(g) + block);
      }
    }
  });
}

template <class Terms>
double total_of(const Blocks& blocks, Terms terms) {
  std::vector<double> partials(blocks.block_count());
  for_each_block(blocks, [&](const Gradient& gradient, int64_t begin, int64_t end, int64_t block) {
    visit_storage(gradient.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      double partial = Terms::identity();
      for_each_tile<T>(gradient, begin, end, [&](const T* x, int64_t count) {
        partial = Terms::combine(partial, partial_loop(terms, x, count));
        return false;
      });
      partials[block] = partial;
    });
  });
  double total = Terms::identity();
  for (double partial : partials) total = Terms::combine(total, partial);
  return total;
}

double norm_of_blocks(const Blocks& blocks, double p, bool has_float64) {
  if (blocks.numel() == 0) return 0;
  return visit_norm(p, [&](auto terms) {
    const double total = total_of(blocks, terms);
    if constexpr (may_leave_range<decltype(terms)>(true)) {
      if (may_leave_range<decltype(terms)>(has_float64) && left_range(total)) {
        const double largest = total_of(blocks, Maximum{});
        if (!has_scale(largest)) return largest;
        const auto scaled = terms.scaled(largest);
        return scaled.finish(total_of(blocks, scaled));
      }
    }
    return terms.finish(total);
  });
}

void scale(const Blocks& blocks, double coefficient) {
  if (leaves_alone(coefficient)) return;
  for_each_block(blocks, [&](const Gradient& gradient, int64_t begin, int64_t end, int64_t) {
    visit_storage(gradient.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      for_each_tile<T>(gradient, begin, end, [&](T* x, int64_t count) {
        scale_loop(x, x, count, arithmetic_t<T>(coefficient));
        return true;
      });
    });
  });
}

// Writes only the stretches that hold something to clamp.
void clamp(const Blocks& blocks, double clip_value) {
  constexpr int64_t kStretch = 512;
  for_each_block(blocks, [&](const Gradient& gradient, int64_t begin, int64_t end, int64_t) {
    visit_storage(gradient.storage, [&](auto type) {
      using T = typename decltype(type)::type;
      const arithmetic_t<T> bound = clip_bound<T>(clip_value);
      for_each_tile<T>(gradient, begin, end, [&](T* x, int64_t count) {
        bool wrote = false;
        for (int64_t i = 0; i < count; i += kStretch) {
          int64_t length = std::min(kStretch, count - i);
          if (!exceeds_loop(x + i, length, bound)) continue;
          clamp_loop(x + i, x + i, length, bound);
          wrote = true;
        }
        return wrote;
      });
    });
  });
}

Tensor new_norm(const Gradients& gradients, double norm) {
  Tensor out = gradients.empty_norm();
  if (gradients.has_float64) {
    *static_cast<double*>(out.mutable_data_ptr()) = norm;
  } else {
    *static_cast<float*>(out.mutable_data_ptr()) = float(norm);
  }
  return out;
}

double value_of(const Tensor& norm) {
  if (norm.scalar_type() == ScalarType::Double) return *static_cast<const double*>(norm.const_data_ptr());
  return *static_cast<const float*>(norm.const_data_ptr());
}

void total_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Gradients gradients("total_norm", stack[0], Access::kRead, Placed::kOnCpu);
  const double p = checked_norm_type("total_norm", torch::stable::detail::to<double>(stack[1]));
  stack[0] = torch::stable::detail::from(
      new_norm(gradients, norm_of_blocks(Blocks(gradients.items), p, gradients.has_float64)));
}

void clip_grads_with_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Tensor norm = torch::stable::detail::to<Tensor>(stack[1]);
  Gradients gradients("clip_grads_with_norm_", stack[0], Access::kWrite, Placed::kOnCpu);
  check_total_norm(gradients, norm);
  double max_norm = torch::stable::detail::to<double>(stack[2]);
  scale(Blocks(gradients.items), clip_coefficient(value_of(norm), max_norm));
}

void clip_grad_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Gradients gradients("clip_grad_norm_", stack[0], Access::kWrite, Placed::kOnCpu);
  double max_norm = torch::stable::detail::to<double>(stack[1]);
  const double p = checked_norm_type("clip_grad_norm_", torch::stable::detail::to<double>(stack[2]));
  Blocks blocks(gradients.items);
  Tensor total = new_norm(gradients, norm_of_blocks(blocks, p, gradients.has_float64));
  // From the rounded norm, so that this is total_norm followed by clip_grads_with_norm_ to the last bit.
  scale(blocks, clip_coefficient(value_of(total), max_norm));
  stack[0] = torch::stable::detail::from(total);
}

void clip_grad_value_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Gradients gradients("clip_grad_value_", stack[0], Access::kWrite, Placed::kOnCpu);
  clamp(Blocks(gradients.items), torch::stable::detail::to<double>(stack[1]));
}

Tensor clip_gradient_value_backward_cpu(const Tensor& grad, double clip_value) {
  return clip_gradient_value_backward(grad, clip_value, [&](auto type, const void* x, void* out, int64_t numel) {
    using T = typename decltype(type)::type;
    torch::stable::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
      clamp_loop(static_cast<const T*>(x) + begin, static_cast<T*>(out) + begin, end - begin,
                 clip_bound<T>(clip_value));
    });
  });
}

template <class T>
double norm_of_row(const T* x, int64_t length, double p) {
  // One block needs no list of blocks.
  if (length <= kBlock) {
    const double norm = visit_norm(p, [&](auto terms) {
      const double total = partial_loop(terms, x, length);
      return may_leave_range<decltype(terms)>(sizeof(T) == 8) && left_range(total) ? -1 : terms.finish(total);
    });
    if (!(norm < 0)) return norm;
  }
  Gradient row{const_cast<T*>(x), length, nullptr, storage_of_type<T>()};
  return norm_of_blocks(Blocks(&row, 1), p, sizeof(T) == 8);
}

template <class T>
void clip_row(const T* x, T* out, int64_t length, double max_norm, double p) {
  const double coefficient = clip_coefficient(norm_of_row(x, length, p), max_norm);
  const bool keep = leaves_alone(coefficient);
  torch::stable::parallel_for(0, length, kGrain, [&](int64_t begin, int64_t end) {
    if (keep) {
      memcpy(out + begin, x + begin, (end - begin) * sizeof(T));
    } else {
      scale_loop(x + begin, out + begin, end - begin, arithmetic_t<T>(coefficient));
    }
  });
}

Tensor clip_gradient_norm_backward_cpu(const Tensor& grad, int64_t row_dims, double max_norm, double norm_type) {
  checked_norm_type("clip_gradient_norm_backward", norm_type);
  return clip_gradient_norm_backward(
      grad, row_dims, [&](auto type, const void* x, void* out, int64_t rows, int64_t length) {
        using T = typename decltype(type)::type;
        // A long row is divided among the threads itself, short ones are dealt out whole; nested loops stay serial.
        torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / length), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            clip_row(static_cast<const T*>(x) + r * length, static_cast<T*>(out) + r * length, length, max_norm,
                     norm_type);
          }
        });
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("total_norm", &total_norm_cpu);
  m.impl("clip_grad_norm_", &clip_grad_norm_cpu);
  m.impl("clip_grads_with_norm_", &clip_grads_with_norm_cpu);
  m.impl("clip_grad_value_", &clip_grad_value_cpu);
  m.impl("clip_gradient_value_backward", TORCH_BOX(&clip_gradient_value_backward_cpu));
  m.impl("clip_gradient_norm_backward", TORCH_BOX(&clip_gradient_norm_backward_cpu));
}

}  // namespace ste_ops
