// The input of a convolution as bits: a plane of words for each 32 channels of a group, a word for each pixel. A load
// of neighbours in a plane is a load of lanes, so the patches under a kernel are copied from it, never gathered.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/binarize/convolution.h"
#include "cpu/binarize/panels.h"

namespace ste_ops {

constexpr int64_t kPatchChunk = kProductLanes;  // outputs whose patches are in panels at once

// The planes lie in a frame of what is padded: [batch][group][word][row][column].
struct Frame {
  const Convolution& c;
  int64_t bottom, right;
  bool ones;  // whether +1 is padded

  int64_t height() const { return c.top + c.height + bottom; }
  int64_t width() const { return c.left + c.width + right; }
  int64_t plane() const { return height() * width(); }
  int64_t of_image() const { return c.groups * c.channel_words() * plane(); }
  int64_t size() const { return c.batch * of_image(); }

  // The words of the pixels of one plane into their frame.
  void put(const uint32_t* pixels, int64_t word, uint32_t* plane_words) const {
    if (plane() > c.pixels()) {
      std::fill_n(plane_words, plane(), ones ? low_bits(c.channels - word * kWordBits) : 0u);
    }
    uint32_t* to = plane_words + c.top * width() + c.left;
    for (int64_t y = 0; y < c.height; ++y) {
      memcpy(to + y * width(), pixels + y * c.width, size_t(c.width) * sizeof(uint32_t));
    }
  }
};

// x of numbers, N C H W in memory.
template <class Rule, class T>
void pack_planes(Capability level, const Frame& frame, const T* x, uint32_t* planes) {
  const Convolution& c = frame.c;
  const int64_t words = c.channel_words(), pixels = c.pixels(), numel = c.batch * c.groups * c.channels * pixels;
  share_out(c.batch * c.groups * words, double(pixels) * 4, [&](int64_t begin, int64_t end) {
    const Words own = new_words(pixels);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % words * kWordBits, place = (i / words * c.channels + first) * pixels;
      const int64_t count = std::min<int64_t>(kWordBits, c.channels - first);
      pack_lanes(level, PackLanes<Rule, T>{x + place, pixels, count, pixels, numel - place, own.get()});
      frame.put(own.get(), i % words, planes + i * frame.plane());
    }
  });
}

// N H W C in memory.
template <class Rule, class T>
void pack_pixels(Capability level, const Frame& frame, const T* x, uint32_t* planes) {
  const Convolution& c = frame.c;
  const int64_t words = c.channel_words(), pixels = c.pixels(), all = c.groups * c.channels;
  share_out(c.batch * c.groups, double(c.channels * pixels) * 0.1, [&](int64_t begin, int64_t end) {
    const Words own = new_words(words * pixels);
    for (int64_t i = begin; i < end; ++i) {
      const T* group = x + i / c.groups * pixels * all + i % c.groups * c.channels;
      pack_rows(level, PackRows<Rule, T>{group, all, pixels, c.channels, own.get(), 1, pixels});
      for (int64_t w = 0; w < words; ++w) {
        frame.put(own.get() + w * pixels, w, planes + (i * words + w) * frame.plane());
      }
    }
  });
}

// x of bits along the channels, N C / 8 H W.
inline void pack_planes(const Frame& frame, const uint8_t* x, uint32_t* planes) {
  const Convolution& c = frame.c;
  const int64_t words = c.channel_words(), pixels = c.pixels(), bytes = mask_bytes(c.channels);
  const Words own = new_words(pixels);
  for (int64_t i = 0; i < c.batch * c.groups * words; ++i) {
    const int64_t first = i % words * 4, count = std::min<int64_t>(4, bytes - first);
    const uint8_t* from = x + (i / words * bytes + first) * pixels;
    const uint32_t used = low_bits(c.channels - first * 8);
    for (int64_t p = 0; p < pixels; ++p) own[size_t(p)] = word_of_bytes(from + p, pixels, count) & used;
    frame.put(own.get(), i % words, planes + i * frame.plane());
  }
}

// Outputs of one row of one image and of one panel, and where in its frame the first tap of the first lies.
struct OutputRun {
  int64_t lane, count, image, y, x;
};

// Copies a plane's words for the lanes of a run: the whole panel from there, over what the next run, or the next word,
// writes after it.
struct CopyPatches {
  const Convolution& c;
  const uint32_t* plane;  // of the first image, group and word
  int64_t word_step, image_step, width;
  const OutputRun* runs;
  int64_t run_count;
  uint32_t* panels;

  STE_OPS_INLINE void operator()() const {
    const int64_t words = c.words();
    for (int64_t i = 0; i < run_count; ++i) {
      const OutputRun& run = runs[i];
      const uint32_t* from = plane + run.image * image_step + run.y * c.stride_y * width + run.x * c.stride_x;
      uint32_t* to = panels + run.lane / kPanelRows * words * kPanelRows + run.lane % kPanelRows;
      for (int64_t ky = 0; ky < c.kernel_height; ++ky) {
        for (int64_t kx = 0; kx < c.kernel_width; ++kx) {
          const uint32_t* tap = from + ky * c.dilation_y * width + kx * c.dilation_x;
          for (int64_t w = 0; w < c.channel_words(); ++w, to += kPanelRows) {
            copy(tap + w * word_step, to, run.count);
          }
        }
      }
    }
  }

  STE_OPS_INLINE void copy(const uint32_t* from, uint32_t* to, int64_t count) const {
    if (c.stride_x > 1 || count < kPanelRows) {
      for (int64_t l = 0; l < count; ++l) to[l] = from[l * c.stride_x];
    } else {
      memcpy(to, from, kPanelRows * sizeof(uint32_t));
    }
  }
};

// The patches of a chunk of outputs in one group, as two panels; their masks, where zeros are padded.
struct Patches {
  const Convolution& c;
  const Frame& frame;
  Words panels, masks;
  std::vector<OutputRun> runs;
  int32_t ones[kPatchChunk];  // numbers of each patch that are no padding
  bool padded = false;        // whether a patch of the chunk reaches over the edge

  explicit Patches(const Frame& frame)
      : c(frame.c),
        frame(frame),
        panels(new_words(c.words() * kPatchChunk)),
        masks(new_words(c.words() * kPatchChunk)) {}

  // planes: those of the group in image 0. `inside`: a frame of words, all ones but in the padding, or null.
  void gather(Capability level, const uint32_t* planes, const uint32_t* inside, int64_t first, int64_t count) {
    set_runs(first, count);
    const int64_t size = int64_t(runs.size());
    run_at(
        level, CopyPatches{c, planes, frame.plane(), frame.of_image(), frame.width(), runs.data(), size, panels.get()});
    if (!padded || !inside) return;
    run_at(level, CopyPatches{c, inside, 0, 0, frame.width(), runs.data(), size, masks.get()});
    for (const OutputRun& run : runs) {
      const int64_t rows = within(run.y * c.stride_y - c.top, c.dilation_y, c.kernel_height, c.height);
      for (int64_t l = 0; l < run.count; ++l) {
        const int64_t x = (run.x + l) * c.stride_x - c.left;
        ones[run.lane + l] = int32_t(rows * within(x, c.dilation_x, c.kernel_width, c.width) * c.channels);
      }
    }
  }

 private:
  // How many of `count` places, `step` apart, lie in 0..size.
  static int64_t within(int64_t first, int64_t step, int64_t count, int64_t size) {
    int64_t inside = 0;
    for (int64_t i = 0; i < count; ++i) inside += first + i * step >= 0 && first + i * step < size;
    return inside;
  }

  void set_runs(int64_t first, int64_t count) {
    const int64_t reach_y = (c.kernel_height - 1) * c.dilation_y, reach_x = (c.kernel_width - 1) * c.dilation_x;
    runs.clear();
    padded = false;
    for (int64_t lane = 0; lane < count;) {
      const int64_t output = first + lane, row = output / c.out_width, x = output % c.out_width;
      const int64_t length = std::min({count - lane, c.out_width - x, kPanelRows - lane % kPanelRows});
      const OutputRun run = {lane, length, row / c.out_height, row % c.out_height, x};
      const int64_t top = run.y * c.stride_y - c.top, left = x * c.stride_x - c.left;
      padded = padded || top < 0 || top + reach_y >= c.height || left < 0 ||
          left + (length - 1) * c.stride_x + reach_x >= c.width;
      runs.push_back(run);
      lane += length;
    }
  }
};

}  // namespace ste_ops
