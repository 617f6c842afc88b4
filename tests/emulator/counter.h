// What the kernels move: the bytes that they load from global memory and store there, launch by launch, while
// `counting` is set. Shared memory, the stack, the parameters and constants are no traffic.
//
// A device fetches a byte once for all lanes of a warp that ask for it in one instruction, so the bytes asked for say
// little; counted beside them are the distinct bytes, which must move whatever the caches do, and those of them that
// are moved again: by another instruction, by another warp, or by a thread that has moved them before.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "checker.h"

namespace emulator {

extern std::atomic<bool> counting;

struct Traffic {
  uint64_t asked = 0, distinct = 0, again = 0;
};

// The bytes that the accesses of one kind touch.
class Touched {
 public:
  void touch(uintptr_t address, size_t bytes, uint32_t pc, uint32_t warp, uint32_t lane);
  const Traffic& traffic() const { return traffic_; }

 private:
  // Who touched a byte last; nobody where `lanes` is 0.
  struct Byte {
    uint32_t pc, warp, lanes;
    bool again;
  };
  static constexpr uintptr_t kPage = 1024;
  Byte& at(uintptr_t address);

  Traffic traffic_;
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;
  uintptr_t last_number_ = ~uintptr_t(0);
  Byte* last_ = nullptr;
};

// Of one launch.
class Counter {
 public:
  Counter(const Launch& launch, Range static_shared, Range dynamic_shared);
  void access(Access kind, uintptr_t address, size_t bytes, uint64_t block, int thread, Range stack, const void* pc);
  // Adds the launch to what emulator_counts tells.
  void keep() const;

 private:
  const void* kernel_;
  uint64_t blocks_;
  uint32_t warps_;
  uintptr_t image_;
  std::vector<Range> elsewhere_;
  Touched loaded_, stored_;
};

}  // namespace emulator
