// Warp operations, and the order in which warps and lanes take their turns.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "engine.h"

namespace emulator {

namespace {

// splitmix64's finalizer, because neighbouring blocks and turns must not share their order.
uint64_t mix(uint64_t a, uint64_t b, uint64_t c) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// The lane that a shuffle reads: PTX ISA, shfl.sync. Outside the segment a lane reads itself.
int source_lane(const Thread& thread, int lane) {
  int first = lane & ~(thread.width - 1);
  int last = first + thread.width - 1;
  int source = lane;
  switch (thread.kind) {
    case Exchange::kShuffle: return first | (thread.argument & (thread.width - 1));
    case Exchange::kUp: source = lane - thread.argument; return source < first || source > last ? lane : source;
    case Exchange::kDown: source = lane + thread.argument; return source < first || source > last ? lane : source;
    case Exchange::kXor:  // alone in that it may read an earlier segment
      source = lane ^ thread.argument;
      return source < 0 || source > last ? lane : source;
    default: return lane;
  }
}

}  // namespace

Order Order::from_environment() {
  Order order;
  const char* value = std::getenv("STE_OPS_EMULATED_ORDER");
  if (!value || !*value) return order;
  char* end = nullptr;
  order.seed_ = std::strtoull(value, &end, 10);
  if (*end == '\0') return order;
  bool forward = std::string(value) == "forward";
  if (!forward && std::string(value) != "reverse") {
    throw std::runtime_error("STE_OPS_EMULATED_ORDER must be forward, reverse or a seed, got " + std::string(value));
  }
  order.kind_ = forward ? Kind::kForward : Kind::kReverse;
  return order;
}

bool Order::blocks_reversed() const {
  return kind_ == Kind::kReverse || (kind_ == Kind::kShuffle && mix(seed_, 0, 0) & 1);
}

std::vector<int> Order::warps(int count, uint64_t block, uint64_t phase) const {
  std::vector<int> warps(static_cast<size_t>(count));
  std::iota(warps.begin(), warps.end(), 0);
  if (kind_ == Kind::kReverse) std::reverse(warps.begin(), warps.end());
  if (kind_ == Kind::kShuffle) {
    for (uint64_t i = uint64_t(count) - 1; i > 0; --i) {
      std::swap(warps[i], warps[mix(seed_ + i, block, phase) % (i + 1)]);
    }
  }
  return warps;
}

int Order::lane_flip(uint64_t block, uint64_t turn) const {
  if (kind_ == Kind::kShuffle) return int(mix(seed_, block, ~turn) % kLanes);
  return kind_ == Kind::kReverse ? kLanes - 1 : 0;
}

uint64_t Engine::exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, const Site& site) {
  in_kernel_ = false;
  Thread& thread = threads_[size_t(current_)];
  int lane = current_ % kLanes;
  if (!(mask >> lane & 1)) {
    throw error(place(site) + ": lane " + std::to_string(lane) + " is not in its own mask " + std::to_string(mask));
  }
  if (width <= 0 || width > kLanes || (width & (width - 1)) != 0) {
    throw error(place(site) + ": the width must be a power of two up to 32, got " + std::to_string(width));
  }
  thread.kind = kind;
  thread.mask = mask;
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  thread.site = site;
  suspend(Thread::State::kExchange);
  return thread.value;
}

// Completes every operation that all lanes of its mask have reached; lanes that have returned are not waited for.
bool Engine::finish_exchanges(int warp) {
  Thread* lanes = &threads_[size_t(warp) * kLanes];
  unsigned live = 0, waiting = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    live |= unsigned(lanes[lane].state != Thread::State::kDone) << lane;
    waiting |= unsigned(lanes[lane].state == Thread::State::kExchange) << lane;
  }
  bool finished = false;
  while (waiting) {
    const Thread& first = lanes[__builtin_ctz(waiting)];
    unsigned group = first.mask & live;
    bool complete = (group & ~waiting) == 0;
    for (int lane = 0; lane < kLanes && complete; ++lane) {
      if (group >> lane & 1) complete = lanes[lane].kind == first.kind && lanes[lane].mask == first.mask;
    }
    if (complete && checked_) {
      check_exchange(lanes, first.mask, group);
      if (first.kind == Exchange::kSync) checker_->synchronize(warp, group);
    }
    if (complete) finish_exchange(lanes, group);
    finished |= complete;
    waiting &= complete ? ~group : waiting - 1;
  }
  return finished;
}

// What is undefined on a device: a lane that has returned, and a value from a lane that does not take part.
void Engine::check_exchange(const Thread* warp, unsigned mask, unsigned group) {
  auto thread_number = [&](int lane) { return std::to_string(warp - threads_.data() + lane); };
  const Site& site = warp[__builtin_ctz(group)].site;
  if (mask != group) {
    throw failed(
        place(site) + ": its mask names thread " + thread_number(__builtin_ctz(mask & ~group)) +
        ", which has returned");
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    int source = group >> lane & 1 ? source_lane(warp[lane], lane) : lane;
    if (source == lane || group >> source & 1) continue;
    throw failed(
        place(warp[lane].site) + ": thread " + thread_number(lane) + " reads thread " + thread_number(source) +
        ", which the mask does not name");
  }
}

void Engine::finish_exchange(Thread* warp, unsigned group) {
  uint64_t values[kLanes];
  unsigned ballot = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    bool present = group >> lane & 1;
    values[lane] = present ? warp[lane].value : uint64_t(kPoison) << 32 | kPoison;
    ballot |= unsigned(present && warp[lane].value != 0) << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(group >> lane & 1)) continue;
    Thread& thread = warp[lane];
    thread.state = Thread::State::kReady;
    if (thread.kind == Exchange::kBallot) {
      thread.value = ballot;
    } else if (thread.kind == Exchange::kAny) {
      thread.value = ballot != 0;
    } else if (thread.kind == Exchange::kAll) {
      thread.value = ballot == group;
    } else {
      thread.value = values[source_lane(thread, lane)];
    }
  }
}

}  // namespace emulator
