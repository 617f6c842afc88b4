#include "counter.h"

#include <mutex>
#include <string>

#include "engine.h"

namespace emulator {

std::atomic<bool> counting{false};

namespace {

std::mutex counts_mutex;

// Lines, for emulator_counts.
std::string& counts() {
  static auto* text = new std::string;
  return *text;
}

}  // namespace

Touched::Byte& Touched::at(uintptr_t address) {
  uintptr_t number = address / kPage;
  if (number != last_number_) {
    std::unique_ptr<Byte[]>& page = pages_[number];
    if (!page) page = std::make_unique<Byte[]>(kPage);
    last_ = page.get();
    last_number_ = number;
  }
  return last_[address % kPage];
}

void Touched::touch(uintptr_t address, size_t bytes, uint32_t pc, uint32_t warp, uint32_t lane) {
  traffic_.asked += bytes;
  for (size_t i = 0; i < bytes; ++i) {
    Byte& byte = at(address + i);
    const bool together = byte.lanes != 0 && byte.pc == pc && byte.warp == warp && !(byte.lanes >> lane & 1);
    if (byte.lanes == 0) {
      ++traffic_.distinct;
    } else if (!together && !byte.again) {
      ++traffic_.again;
      byte.again = true;
    }
    byte.pc = pc;
    byte.warp = warp;
    byte.lanes = (together ? byte.lanes : 0) | 1u << lane;
  }
}

Counter::Counter(const Launch& launch, Range static_shared, Range dynamic_shared)
    : kernel_(launch.kernel),
      blocks_(uint64_t(launch.grid_x) * launch.grid_y),
      warps_(uint32_t(launch.threads / kLanes)),
      elsewhere_(built_ins()) {
  auto arguments = reinterpret_cast<uintptr_t>(launch.arguments);
  elsewhere_.insert(
      elsewhere_.end(),
      {static_shared, dynamic_shared, {arguments, arguments + launch.arguments_bytes}, library_image()});
  image_ = elsewhere_.back().begin;
}

void Counter::access(
    Access kind, uintptr_t address, size_t bytes, uint64_t block, int thread, Range stack, const void* pc) {
  if (stack.holds(address)) return;
  for (const Range& range : elsewhere_) {
    if (range.holds(address)) return;
  }
  auto place = uint32_t(reinterpret_cast<uintptr_t>(pc) - image_);
  auto warp = uint32_t(block) * warps_ + uint32_t(thread / kLanes);
  auto lane = uint32_t(thread % kLanes);
  if (kind != Access::kWrite) loaded_.touch(address, bytes, place, warp, lane);
  if (kind != Access::kRead) stored_.touch(address, bytes, place, warp, lane);
}

void Counter::keep() const {
  std::string line = std::to_string(reinterpret_cast<uintptr_t>(kernel_) - image_) + " " + std::to_string(blocks_);
  for (const Touched* touched : {&loaded_, &stored_}) {
    const Traffic& traffic = touched->traffic();
    for (uint64_t bytes : {traffic.asked, traffic.distinct, traffic.again}) line += " " + std::to_string(bytes);
  }
  std::lock_guard<std::mutex> lock(counts_mutex);
  counts() += line + "\n";
}

}  // namespace emulator

// From Python.
extern "C" {

__attribute__((visibility("default"))) void emulator_count(int on) {
  std::lock_guard<std::mutex> lock(emulator::counts_mutex);
  if (on) emulator::counts().clear();
  emulator::counting = on != 0;
}

// A line for each launch since emulator_count(1): the place of its kernel in the library, its blocks, then what it
// loaded and what it stored: bytes asked for, distinct, moved again.
__attribute__((visibility("default"))) const char* emulator_counts() {
  static std::string text;
  std::lock_guard<std::mutex> lock(emulator::counts_mutex);
  text = emulator::counts();
  return text.c_str();
}
}
