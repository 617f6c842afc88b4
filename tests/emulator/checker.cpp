#include "checker.h"

#include <link.h>

#include <algorithm>

namespace emulator {

namespace {

constexpr int kLanes = 32;

template <class T>
Range range_of(const T& object) {
  auto begin = reinterpret_cast<uintptr_t>(&object);
  return {begin, begin + sizeof(T)};
}

const char* verb(Access kind) {
  switch (kind) {
    case Access::kRead: return "reads";
    case Access::kWrite: return "writes";
    default: return "atomically updates";
  }
}

std::string thread_at(int thread, const std::string& verb, const std::string& place) {
  return "thread " + std::to_string(thread) + " " + verb + " at " + place;
}

}  // namespace

Range library_image() {
  Range range{~uintptr_t(0), 0};
  auto visit = [](dl_phdr_info* info, size_t, void* data) {
    auto here = reinterpret_cast<uintptr_t>(&add_allocation);
    Range found{~uintptr_t(0), 0};
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr) & header = info->dlpi_phdr[i];
      if (header.p_type != PT_LOAD) continue;
      found.begin = std::min(found.begin, uintptr_t(info->dlpi_addr + header.p_vaddr));
      found.end = std::max(found.end, uintptr_t(info->dlpi_addr + header.p_vaddr + header.p_memsz));
    }
    if (!found.holds(here)) return 0;
    *static_cast<Range*>(data) = found;
    return 1;
  };
  dl_iterate_phdr(visit, &range);
  return range;
}

std::vector<Range> built_ins() {
  return {range_of(threadIdx), range_of(blockIdx), range_of(blockDim), range_of(gridDim)};
}

Cells::Memory Cells::make(size_t granule) const {
  auto* cells = static_cast<Cell*>(calloc(count(granule), sizeof(Cell)));  // pages that nobody touches cost nothing
  if (!cells) throw std::bad_alloc();
  return Memory(cells);
}

void Cells::refine(size_t granule) {
  Memory finer = make(granule);
  size_t each = granule_ / granule, total = count(granule);
  for (size_t i = 0; i < count(granule_); ++i) {
    if (cells_[i].write_interval == 0 && cells_[i].read_interval == 0) continue;
    for (size_t j = i * each; j < std::min((i + 1) * each, total); ++j) finer[j] = cells_[i];
  }
  cells_ = std::move(finer);
  granule_ = granule;
}

Cell* Cells::at(uintptr_t address, size_t bytes, size_t& count) {
  size_t offset = address - range_.begin;
  size_t needed = (offset | bytes) & 1 ? 1 : (offset | bytes) & 2 ? 2 : 4;
  if (needed < granule_) refine(needed);
  count = bytes / granule_;
  return &cells_[offset / granule_];
}

Checker::Checker() : image_(library_image()), built_in_(built_ins()) {}

void Checker::begin_launch(const Launch& launch, Range static_shared, void* dynamic_shared) {
  global_.clear();
  last_ = nullptr;
  first_of_launch_ = ++interval_;
  auto arguments = reinterpret_cast<uintptr_t>(launch.arguments);
  arguments_ = {arguments, arguments + launch.arguments_bytes};
  if (!static_shared_) static_shared_ = std::make_unique<Cells>(static_shared);
  auto begin = reinterpret_cast<uintptr_t>(dynamic_shared);
  dynamic_shared_ = std::make_unique<Cells>(Range{begin, begin + launch.shared_bytes});
  dynamic_shared_all_ = {begin, begin + launch.shared_bytes + 128};
}

void Checker::begin_block(int threads) {
  first_of_block_ = ++interval_;
  lanes_.assign(size_t(threads), Lane{1, {}});
  stamp_ = 1;
}

void Checker::synchronize(int warp, unsigned group) {
  Lane* lanes = &lanes_[size_t(warp) * kLanes];
  uint32_t seen[kLanes] = {};
  ++stamp_;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(group >> lane & 1)) continue;
    for (int other = 0; other < kLanes; ++other) seen[other] = std::max(seen[other], lanes[lane].seen[other]);
    seen[lane] = std::max(seen[lane], lanes[lane].clock);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(group >> lane & 1)) continue;
    std::copy(seen, seen + kLanes, lanes[lane].seen);
    lanes[lane].clock = stamp_;
  }
}

std::string Checker::access(Access kind, uintptr_t address, size_t bytes, int thread, Range stack, const void* pc) {
  if (bytes == 0 || stack.holds(address, bytes)) return "";
  for (const Range& range : built_in_) {
    if (range.holds(address)) return "";
  }
  bool shared = true;
  Cells* cells = nullptr;
  if (static_shared_->range().holds(address, bytes)) {
    cells = static_shared_.get();
  } else if (dynamic_shared_->range().holds(address, bytes)) {
    cells = dynamic_shared_.get();
  } else {
    shared = false;
    if (last_ && last_->range().holds(address, bytes)) {
      cells = last_;
    } else {
      auto found = global_.upper_bound(address);
      if (found != global_.begin() && (--found)->second.range().holds(address, bytes)) cells = &found->second;
    }
    if (!cells) {
      if (arguments_.holds(address, bytes) || (kind == Access::kRead && image_.holds(address, bytes))) return "";
      Range range = find_allocation(address);
      if (!range.holds(address, bytes)) return outside(kind, address, bytes, thread, pc);
      cells = &global_.emplace(range.begin, Cells(range)).first->second;
    }
    last_ = cells;
  }
  size_t count;
  Cell* cell = cells->at(address, bytes, count);
  for (size_t i = 0; i < count; ++i) {
    std::string error = look(cell[i], kind, thread, shared, pc);
    if (!error.empty()) return error;
  }
  return "";
}

std::string Checker::outside(Access kind, uintptr_t address, size_t bytes, int thread, const void* pc) const {
  std::string text = thread_at(thread, verb(kind), source_line(pc)) + " " + std::to_string(bytes) + " bytes ";
  if (dynamic_shared_all_.holds(address)) {
    return text + "from byte " + std::to_string(address - dynamic_shared_all_.begin) + " of " +
        std::to_string(dynamic_shared_->range().end - dynamic_shared_->range().begin) +
        " bytes of dynamic shared memory";
  }
  Range nearest = find_allocation(address);
  if (nearest.end == 0 || address - nearest.begin > 2 * (nearest.end - nearest.begin) + 4096) {
    return text + "outside every allocation";
  }
  return text + "from byte " + std::to_string(address - nearest.begin) + " of an allocation of " +
      std::to_string(nearest.end - nearest.begin) + " bytes";
}

std::string Checker::race(
    Access kind, int thread, bool shared, const void* pc, const char* earlier, int other, uint32_t other_pc,
    bool elsewhere) const {
  auto* other_place = reinterpret_cast<const void*>(image_.begin + other_pc);
  return std::string("race in ") + (shared ? "shared" : "global") +
      " memory: " + thread_at(thread, verb(kind), source_line(pc)) + " what " +
      thread_at(other, elsewhere ? std::string("of another block ") + earlier : earlier, source_line(other_place)) +
      (elsewhere ? ", and nothing orders the blocks of a launch" : ", and no barrier stands between them");
}

std::string Checker::look(Cell& cell, Access kind, int thread, bool shared, const void* pc) {
  // Shared memory that an earlier block left would be gone on a device.
  uint64_t first = shared ? first_of_block_ : first_of_launch_;
  bool atomic = kind == Access::kAtomic;
  if (cell.write_interval >= first && !(atomic && cell.write_atomic)) {
    bool elsewhere = !shared && (cell.write_interval < first_of_block_ || cell.written_by_blocks);
    if (elsewhere || !write_is_ordered(cell, thread)) {
      return race(
          kind, thread, shared, pc, cell.write_atomic ? "atomically updated" : "wrote", cell.write_thread,
          cell.write_pc, elsewhere);
    }
  }
  if (kind != Access::kRead && cell.read_interval >= first) {
    bool elsewhere = !shared && (cell.read_interval < first_of_block_ || cell.read_by_other_blocks);
    if (elsewhere || !reads_are_ordered(cell, thread)) {
      return race(kind, thread, shared, pc, "read", cell.read_thread, cell.read_pc, elsewhere);
    }
  }
  auto offset = uint32_t(reinterpret_cast<uintptr_t>(pc) - image_.begin);
  if (kind == Access::kRead) {
    note_read(cell, thread, offset);
  } else {
    note_write(cell, atomic, thread, offset);
  }
  return "";
}

bool Checker::write_is_ordered(const Cell& cell, int thread) const {
  if (cell.write_interval < interval_) return true;
  if (cell.written_by_many) return false;
  if (cell.write_thread == thread) return true;
  if (cell.write_thread / kLanes != thread / kLanes) return false;
  return lanes_[size_t(thread)].seen[cell.write_thread % kLanes] >= cell.write_clock;
}

bool Checker::reads_are_ordered(const Cell& cell, int thread) const {
  if (cell.read_interval < interval_) return true;
  if (cell.read_by_warps) return false;
  uint32_t others = cell.read_lanes;
  if (cell.read_thread / kLanes == thread / kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      bool ordered = lane == thread % kLanes || lanes_[size_t(thread)].seen[lane] >= cell.read_clock;
      if (ordered) others &= ~(1u << lane);
    }
  }
  return others == 0;
}

void Checker::note_write(Cell& cell, bool atomic, int thread, uint32_t pc) const {
  bool again = cell.write_interval >= first_of_launch_;
  cell.written_by_blocks = again && (cell.written_by_blocks || cell.write_interval < first_of_block_);
  cell.written_by_many = cell.write_interval == interval_ && (cell.written_by_many || !write_is_ordered(cell, thread));
  cell.write_interval = interval_;
  cell.write_clock = lanes_[size_t(thread)].clock;
  cell.write_thread = uint16_t(thread);
  cell.write_pc = pc;
  cell.write_atomic = atomic;
}

void Checker::note_read(Cell& cell, int thread, uint32_t pc) const {
  const Lane& own = lanes_[size_t(thread)];
  bool again = cell.read_interval >= first_of_launch_;
  cell.read_by_other_blocks = again && (cell.read_by_other_blocks || cell.read_interval < first_of_block_);
  if (cell.read_interval != interval_) {
    cell.read_by_warps = false;
    cell.read_lanes = 0;
    cell.read_clock = 0;
  } else if (cell.read_thread / kLanes != thread / kLanes) {
    cell.read_by_warps = true;
  } else if (own.clock > cell.read_clock) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (own.seen[lane] >= cell.read_clock) cell.read_lanes &= ~(1u << lane);
    }
  }
  cell.read_interval = interval_;
  cell.read_clock = std::max(cell.read_clock, own.clock);
  cell.read_lanes |= 1u << thread % kLanes;
  cell.read_thread = uint16_t(thread);
  cell.read_pc = pc;
}

}  // namespace emulator
