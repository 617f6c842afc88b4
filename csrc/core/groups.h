// Groups of the elements of a dense tensor around one dimension, in memory order, and a partition of them for
// reductions that depends on the shape alone.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace ste_ops {

// a / b of numbers that are not negative: a 64-bit division costs a GPU several times a 32-bit one.
STE_HD int64_t divided(int64_t a, int64_t b) { return (a | b) >> 31 == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b; }

// A dense tensor's memory as [batch, outer, size, inner]. An element belongs to the group of its batch and its
// coordinate along `size`. Whatever the order of the dimensions in memory, the coordinate of element i along one of
// them is (i / stride) % size, so no dense tensor has to be copied.
struct Groups {
  int64_t batch = 1, outer = 1, size = 1, inner = 1;

  STE_HD int64_t count() const { return batch * size; }
  STE_HD int64_t numel() const { return batch * outer * size * inner; }
  STE_HD int64_t members() const { return outer * inner; }

  STE_HD int64_t of(int64_t i) const {
    if (batch * size == 1) return 0;
    const int64_t place = divided(i, inner), line = divided(place, size), coordinate = place - line * size;
    return batch == 1 ? coordinate : divided(line, outer) * size + coordinate;
  }
};

// The groups of one element after the other, with divisions for the first alone. It may run past the last element,
// where the groups begin anew.
struct GroupWalk {
  int64_t group = 0, left = 0;  // elements until the next group
  int64_t coordinate = 0, outer = 0;

  GroupWalk() = default;
  STE_HD GroupWalk(const Groups& groups, int64_t i) {
    const int64_t place = divided(i, groups.inner), line = divided(place, groups.size);
    const int64_t batch = groups.batch == 1 ? 0 : divided(line, groups.outer);
    left = groups.inner - (i - place * groups.inner);
    coordinate = place - line * groups.size;
    outer = line - batch * groups.outer;
    group = batch * groups.size + coordinate;
  }

  STE_HD void next(const Groups& groups) {
    if (--left > 0) return;
    left = groups.inner;
    ++group;
    if (++coordinate < groups.size) return;
    coordinate = 0;
    const bool repeats = groups.batch == 1 || ++outer < groups.outer;
    if (repeats) {
      group -= groups.size;
    } else {
      outer = 0;
      if (group == groups.count()) group = 0;
    }
  }
};

STE_HD Groups whole_tensor(int64_t numel) { return {1, 1, 1, numel}; }

// One group for each coordinate along a dimension of that size and stride: a channel.
STE_HD Groups channels(int64_t numel, int64_t size, int64_t stride) {
  if (size == 1 || numel == 0) return {1, 1, size, size == 0 ? 0 : numel / size};
  return {1, numel / (size * stride), size, stride};
}

// One group for each line of elements along the dimension: a token. Group (outer, inner) is number
// outer * stride + inner.
STE_HD Groups tokens(int64_t numel, int64_t size, int64_t stride) {
  if (numel == 0) return {1, 1, 0, size};
  if (size == 1) return {1, 1, numel, 1};
  if (stride == 1) return {1, 1, numel / size, size};
  return {numel / (size * stride), size, stride, 1};
}

// What one thread (or block of threads) of a reduction reads: `outers` pieces of `length` consecutive elements,
// `stride` apart, each cut into rows of `width`. Lane j of every row belongs to group first + (j / inner) % size, so a
// row adds to accumulators of its own width, lane by lane. The result of `group` is number (part * size + group) of its
// batch.
struct ReduceTask {
  int64_t begin, outers, stride, length, width;
  int64_t batch, first, part;
};

// Cuts groups into tasks of about `block` elements with rows of at most `span`.
struct Partition {
  Groups groups;
  int64_t span, block;
  int64_t width;        // of a row
  int64_t pieces;       // of the stretch of memory that one outer is, where it is longer than a row
  int64_t parts_inner;  // of a group within one outer
  int64_t outers;       // of a task
  int64_t outer_tasks;  // in a batch
  bool folded;          // a row holds several outers

  STE_HD Partition(const Groups& groups, int64_t span, int64_t block) : groups(groups), span(span), block(block) {
    const int64_t slab = groups.size * groups.inner;
    folded = slab <= span;
    parts_inner = pieces = 1;
    if (slab == 0 || groups.outer == 0) {
      width = outers = 1;
      outer_tasks = 0;
      return;
    }
    int64_t rows;  // or outers where a row holds no more than one
    if (folded) {
      int64_t together = span / slab < groups.outer ? span / slab : groups.outer;
      width = slab * together;
      rows = (groups.outer + together - 1) / together;
      outers = at_least_one(block / width);
    } else if (groups.inner <= span) {
      width = span / groups.inner * groups.inner;
      pieces = (slab + width - 1) / width;
      rows = groups.outer;
      // A result for each column of `inner` lanes: enough rows that the results are few beside the elements.
      outers = at_least_one(block / width > 32 ? block / width : 32);
    } else {
      width = span;
      int64_t whole_rows = block / span * span;
      length_ = groups.inner < whole_rows ? groups.inner : whole_rows;
      parts_inner = (groups.inner + length_ - 1) / length_;
      pieces = groups.size * parts_inner;
      rows = groups.outer;
      // A task for each channel, in the order of the memory, unless it were too short to be worth its fold.
      outers = at_least_one(4 * span / groups.inner);
    }
    outer_tasks = (rows + outers - 1) / outers;
  }

  // Of a batch; every group has a result in each part.
  STE_HD int64_t parts() const { return outer_tasks * parts_inner; }
  STE_HD int64_t results() const { return groups.batch * parts() * groups.size; }
  STE_HD int64_t tasks() const { return groups.batch * outer_tasks * pieces; }

  STE_HD ReduceTask task(int64_t number) const {
    const int64_t slab = groups.size * groups.inner, in_batch = slab * groups.outer;
    const int64_t line = divided(number, pieces), piece = number - line * pieces;
    ReduceTask task;
    task.batch = divided(line, outer_tasks);
    const int64_t outer_task = line - task.batch * outer_tasks;
    task.width = width;
    task.first = 0;
    task.part = outer_task;
    task.begin = task.batch * in_batch;
    if (folded) {
      const int64_t from = outer_task * outers * width;
      task.begin += from;
      task.outers = 1;
      task.stride = 0;
      task.length = smaller(outers * width, in_batch - from);
      return task;
    }
    const int64_t outer = outer_task * outers;
    task.begin += outer * slab;
    task.outers = smaller(outers, groups.outer - outer);
    task.stride = slab;
    if (groups.inner <= span) {
      task.begin += piece * width;
      task.first = piece * divided(width, groups.inner);
      task.length = smaller(width, slab - piece * width);
    } else {
      task.first = divided(piece, parts_inner);
      const int64_t of_inner = piece - task.first * parts_inner, within = of_inner * length_;
      task.begin += task.first * groups.inner + within;
      task.length = smaller(length_, groups.inner - within);
      task.part = outer_task * parts_inner + of_inner;
    }
    return task;
  }

 private:
  int64_t length_ = 0;

  STE_HD static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  STE_HD static int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
};

}  // namespace ste_ops
