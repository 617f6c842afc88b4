// The scheduler behind cuda_emulator.h. Blocks run one after the other; within a block each warp runs as far as it can.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "checker.h"
#include "counter.h"
#include "cuda_emulator.h"
#include "fiber.h"

namespace emulator {

constexpr int kLanes = 32;
// NaN as float and as double, negative as an integer.
constexpr uint32_t kPoison = 0xfff5a5a5u;

// "__syncthreads at norm.cu:12 (norm_kernel)"
std::string place(const Site& site);

// The order in which blocks, warps and lanes take their turns.
class Order {
 public:
  static Order from_environment();
  bool blocks_reversed() const;
  std::vector<int> warps(int count, uint64_t block, uint64_t phase) const;
  int lane_flip(uint64_t block, uint64_t turn) const;

 private:
  enum class Kind { kForward, kReverse, kShuffle };
  Kind kind_ = Kind::kShuffle;
  uint64_t seed_ = 1;
};

struct Thread {
  enum class State { kFresh, kReady, kBarrier, kExchange, kDone };
  State state = State::kFresh;
  Fiber* fiber = nullptr;
  Site site{};
  Exchange kind{};
  unsigned mask = 0;
  int argument = 0;
  int width = 0;
  uint64_t value = 0;
};

// One for each OS thread that launches.
class Engine {
 public:
  static Engine& get();
  // None where this OS thread has not launched yet.
  static Engine* current();

  void run(const Launch& launch);
  void barrier(const Site& site);
  void note_system_atomic(const Site& site);
  uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, const Site& site);
  void* shared_memory() { return shared_.data(); }
  bool running() const { return launch_ != nullptr; }
  // Checks and counts a kernel's access; ends the launch where it is wrong.
  void watch(Access kind, const void* address, size_t bytes, const void* pc);
  // Ends the launch from inside a kernel where nothing may be thrown.
  [[noreturn]] void abandon(const std::string& error);
  std::runtime_error error(const std::string& what) const;

 private:
  void run_block(const Order& order);
  void run_warp(int warp, const Order& order);
  void resume(int thread);
  void suspend(Thread::State state);
  void release_barrier();
  bool finish_exchanges(int warp);
  void finish_exchange(Thread* warp, unsigned group);
  void check_exchange(const Thread* warp, unsigned mask, unsigned group);
  void find_static_shared_memory();
  void poison_shared_memory();
  void check_shared_memory() const;
  std::string waiting_threads() const;
  // For what the scheduler finds: the fibers start anew.
  std::runtime_error failed(const std::string& what);
  bool start_next_lane(Fiber* fiber);
  void reset_fibers();
  [[noreturn]] static void thread_main();

  const Launch* launch_ = nullptr;
  uint64_t block_ = 0;
  std::vector<Thread> threads_;
  int current_ = 0;
  int live_ = 0;
  int lane_cursor_ = 0;
  int lane_flip_ = 0;
  uint64_t turn_ = 0;
  int system_atomics_ = 0;  // of this block
  bool synchronized_ = false;
  std::exception_ptr failure_;
  std::unique_ptr<Checker> checker_;
  std::unique_ptr<Counter> counter_;  // none where this launch is not counted
  bool checked_ = false;              // this launch
  bool watched_ = false;              // checked or counted
  // Whether what runs is the kernel's. The engine shares template instances with it, which are watched too.
  bool in_kernel_ = false;

  Context scheduler_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;

  struct alignas(128) Line {
    unsigned char bytes[128];
  };
  std::vector<Line> shared_;
  uint32_t* static_shared_begin_ = nullptr;
  uint32_t* static_shared_end_ = nullptr;
};

}  // namespace emulator
