// What a GPU lets happen and a run in turns can hide: races, and accesses outside every allocation. The kernels are
// compiled with -fsanitize=thread, so that the compiler calls tsan.cpp at each load and store; the runtime behind the
// calls is this one, and it looks while `checking` is set.
//
// Two threads race where both touch a byte, one of them writes, not both by atomics, and nothing orders them:
// __syncthreads orders all threads of a block, __syncwarp the lanes that it names, nothing the blocks of a launch.
// Shuffles and ballots order no memory (CUDA C++ Programming Guide, warp shuffle functions).
#pragma once

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_emulator.h"

namespace emulator {

extern std::atomic<bool> checking;

enum class Access { kRead, kWrite, kAtomic };

// Device memory that kernels may touch, while `checking` is set: of torch through guarded.cpp, and pinned_memory.
struct Range {
  uintptr_t begin = 0, end = 0;
  bool holds(uintptr_t address) const { return address - begin < end - begin; }
  bool holds(uintptr_t address, size_t bytes) const { return holds(address) && bytes <= end - address; }
};
void add_allocation(const void* data, size_t bytes);
void remove_allocation(const void* data);
// The allocation at an address, or the one that ends last before it.
Range find_allocation(uintptr_t address);

// Of the library: its code and its constants.
Range library_image();
// threadIdx and the like of this OS thread.
std::vector<Range> built_ins();

// By addr2line, from what -g1 left: "norm.cu:12", and the name of a kernel that the library does not export, or "".
std::string source_line(const void* return_address);
std::string function_name(const void* address);

// Who touched a granule: the last write, and the reads since that nothing orders.
struct Cell {
  uint64_t write_interval, read_interval;
  uint32_t write_clock, read_clock;
  uint32_t write_pc, read_pc;
  uint32_t read_lanes;
  uint16_t write_thread, read_thread;
  bool write_atomic;
  bool written_by_many;       // threads of this interval, by atomics
  bool written_by_blocks;     // several of this launch, by atomics
  bool read_by_warps;         // several of this interval
  bool read_by_other_blocks;  // of this launch
};

// The cells of a piece of memory, one for four bytes until something smaller is touched.
class Cells {
 public:
  explicit Cells(Range range) : range_(range), granule_(4), cells_(make(4)) {}
  const Range& range() const { return range_; }
  // The cells of an access, and their number.
  Cell* at(uintptr_t address, size_t bytes, size_t& count);

 private:
  struct Free {
    void operator()(Cell* cells) const { free(cells); }
  };
  using Memory = std::unique_ptr<Cell[], Free>;
  size_t count(size_t granule) const { return (range_.end - range_.begin + granule - 1) / granule; }
  Memory make(size_t granule) const;
  void refine(size_t granule);

  Range range_;
  size_t granule_;
  Memory cells_;
};

// Of one launch at a time.
class Checker {
 public:
  Checker();
  void begin_launch(const Launch& launch, Range static_shared, void* dynamic_shared);
  void begin_block(int threads);
  void barrier() { ++interval_; }
  // __syncwarp of the lanes of `group`.
  void synchronize(int warp, unsigned group);
  // Empty, or what is wrong.
  std::string access(Access kind, uintptr_t address, size_t bytes, int thread, Range stack, const void* pc);

 private:
  struct Lane {
    uint32_t clock;     // of its last __syncwarp
    uint32_t seen[32];  // up to which clock the accesses of another lane come before its own
  };

  std::string outside(Access kind, uintptr_t address, size_t bytes, int thread, const void* pc) const;
  std::string look(Cell& cell, Access kind, int thread, bool shared, const void* pc);
  std::string race(
      Access kind, int thread, bool shared, const void* pc, const char* earlier, int other, uint32_t other_pc,
      bool elsewhere) const;
  bool write_is_ordered(const Cell& cell, int thread) const;
  bool reads_are_ordered(const Cell& cell, int thread) const;
  void note_write(Cell& cell, bool atomic, int thread, uint32_t pc) const;
  void note_read(Cell& cell, int thread, uint32_t pc) const;

  uint64_t interval_ = 1;  // between barriers; counts on from launch to launch
  uint64_t first_of_launch_ = 1;
  uint64_t first_of_block_ = 1;
  uint32_t stamp_ = 1;
  std::vector<Lane> lanes_;

  Range image_;
  Range arguments_;
  std::vector<Range> built_in_;
  std::unique_ptr<Cells> static_shared_, dynamic_shared_;
  Range dynamic_shared_all_;  // with what lies behind its end
  std::map<uintptr_t, Cells> global_;
  Cells* last_ = nullptr;
};

}  // namespace emulator
