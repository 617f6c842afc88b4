#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
__asm__(
    ".text\n"
    ".globl emulator_switch\n"
    ".hidden emulator_switch\n"
    ".type emulator_switch,@function\n"
    "emulator_switch:\n"
    "  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
    "  ret\n"
    ".size emulator_switch, .-emulator_switch\n");
#endif

namespace emulator {

namespace {

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || info.dli_saddr != kernel || !info.dli_sname) {
    std::string name = function_name(kernel);
    return name.empty() ? "a kernel" : name;
  }
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status), free);
  return status == 0 ? name.get() : info.dli_sname;
}

// The kernels that have run under check.
std::mutex checked_mutex;
std::set<const void*>& checked_kernels() {
  static auto* kernels = new std::set<const void*>;
  return *kernels;
}

bool same_place(const Site& a, const Site& b) {
  return a.line == b.line && strcmp(a.operation, b.operation) == 0 && strcmp(a.file, b.file) == 0;
}

pthread_key_t engine_key() {
  static pthread_key_t key = [] {
    pthread_key_t created;
    pthread_key_create(&created, [](void* engine) { delete static_cast<Engine*>(engine); });
    return created;
  }();
  return key;
}

}  // namespace

std::string place(const Site& site) {
  return std::string(site.operation) + " at " + site.file + ":" + std::to_string(site.line) + " (" + site.function +
      ")";
}

// In a pthread key, because every thread_local of the library is shared memory to poison (poison.cpp).
Engine& Engine::get() {
  if (Engine* engine = current()) return *engine;
  auto* engine = new Engine;
  pthread_setspecific(engine_key(), engine);
  return *engine;
}

Engine* Engine::current() { return static_cast<Engine*>(pthread_getspecific(engine_key())); }

std::runtime_error Engine::error(const std::string& what) const {
  std::string block = std::to_string(block_ % launch_->grid_x);
  if (launch_->grid_y > 1) block = "(" + block + ", " + std::to_string(block_ / launch_->grid_x) + ")";
  return std::runtime_error(
      "emulator: " + kernel_name(launch_->kernel) + " launched by " + launch_->caller + ", block " + block + ": " +
      what);
}

void Engine::run(const Launch& launch) {
  if (running()) throw std::logic_error("emulator: a kernel cannot launch another one");
  launch_ = &launch;
  block_ = 0;
  struct Done {
    Engine* engine;
    ~Done() {
      engine->launch_ = nullptr;
      engine->counter_ = nullptr;
      engine->failure_ = nullptr;
    }
  } done{this};
  if (launch.threads <= 0 || launch.threads > 1024 || launch.threads % kLanes != 0) {
    throw error("the block size must be a multiple of 32 up to 1024, got " + std::to_string(launch.threads));
  }
  Order order = Order::from_environment();
  threads_.resize(size_t(launch.threads));
  shared_.resize(launch.shared_bytes / sizeof(Line) + 2);  // at least a line beyond the end, to see overruns
  find_static_shared_memory();
  checked_ = checking;
  const Range static_shared{
      reinterpret_cast<uintptr_t>(static_shared_begin_), reinterpret_cast<uintptr_t>(static_shared_end_)};
  if (counting) {
    auto begin = reinterpret_cast<uintptr_t>(shared_.data());
    counter_ = std::make_unique<Counter>(launch, static_shared, Range{begin, begin + shared_.size() * sizeof(Line)});
  }
  watched_ = checked_ || counter_;
  if (checked_) {
    if (!checker_) checker_ = std::make_unique<Checker>();
    checker_->begin_launch(launch, static_shared, shared_.data());
    std::lock_guard<std::mutex> lock(checked_mutex);
    checked_kernels().insert(launch.kernel);
  }
  synchronized_ = true;
  uint64_t blocks = uint64_t(launch.grid_x) * launch.grid_y;
  for (uint64_t i = 0; i < blocks; ++i) {
    block_ = order.blocks_reversed() ? blocks - 1 - i : i;
    // A block that never synchronized has no use for shared memory, so that what it left needs no poison.
    if (synchronized_) poison_shared_memory();
    run_block(order);
    if (synchronized_) check_shared_memory();
  }
  if (counter_) counter_->keep();
}

void Engine::run_block(const Order& order) {
  blockDim = {unsigned(launch_->threads), 1, 1};
  gridDim = {launch_->grid_x, launch_->grid_y, 1};
  blockIdx = {unsigned(block_ % launch_->grid_x), unsigned(block_ / launch_->grid_x), 0};
  threadIdx = {0, 0, 0};
  for (Thread& thread : threads_) thread.state = Thread::State::kFresh;
  live_ = launch_->threads;
  if (checked_) checker_->begin_block(live_);
  synchronized_ = false;
  system_atomics_ = 0;
  turn_ = 0;
  for (uint64_t phase = 0; live_ > 0; ++phase) {
    if (phase > 0) release_barrier();
    for (int warp : order.warps(launch_->threads / kLanes, block_, phase)) run_warp(warp, order);
  }
}

// Until every lane has returned or waits for another warp.
void Engine::run_warp(int warp, const Order& order) {
  do {
    lane_flip_ = order.lane_flip(block_, turn_++);
    for (lane_cursor_ = 0; lane_cursor_ < kLanes;) {
      int thread = warp * kLanes + (lane_cursor_++ ^ lane_flip_);
      Thread::State state = threads_[size_t(thread)].state;
      if (state == Thread::State::kFresh || state == Thread::State::kReady) resume(thread);
    }
  } while (finish_exchanges(warp));
}

void Engine::resume(int index) {
  Thread& thread = threads_[size_t(index)];
  if (thread.state == Thread::State::kFresh) {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(int(fibers_.size())));
      fibers_.back()->prepare(&Engine::thread_main);
      idle_.push_back(fibers_.back().get());
    }
    thread.fiber = idle_.back();
    idle_.pop_back();
  }
  current_ = index;
  threadIdx.x = unsigned(index);
  switch_context(scheduler_, thread.fiber->context);
  if (failure_) {
    reset_fibers();
    std::rethrow_exception(failure_);
  }
}

void Engine::suspend(Thread::State state) {
  Thread& thread = threads_[size_t(current_)];
  thread.state = state;
  synchronized_ = true;
  switch_context(thread.fiber->context, scheduler_);
  in_kernel_ = watched_;
}

// The life of a fiber: thread after thread, as long as none of them waits.
void Engine::thread_main() {
  Engine& engine = get();
  enter_context(engine.scheduler_);
  for (;;) {
    Fiber* fiber = engine.threads_[size_t(engine.current_)].fiber;
    do {
      try {
        engine.in_kernel_ = engine.watched_;
        engine.launch_->body(engine.launch_->arguments);
      } catch (...) {
        engine.failure_ = std::current_exception();
      }
      engine.in_kernel_ = false;
      engine.threads_[size_t(engine.current_)].state = Thread::State::kDone;
      --engine.live_;
    } while (!engine.failure_ && engine.start_next_lane(fiber));
    engine.idle_.push_back(fiber);
    switch_context(fiber->context, engine.scheduler_);
  }
}

bool Engine::start_next_lane(Fiber* fiber) {
  if (lane_cursor_ == kLanes) return false;
  int next = current_ / kLanes * kLanes + (lane_cursor_ ^ lane_flip_);
  Thread& thread = threads_[size_t(next)];
  if (thread.state != Thread::State::kFresh) return false;
  ++lane_cursor_;
  thread.fiber = fiber;
  current_ = next;
  threadIdx.x = unsigned(next);
  return true;
}

// After a failure some fibers stand in the middle of a kernel.
void Engine::reset_fibers() {
  idle_.clear();
  for (auto& fiber : fibers_) {
    fiber->prepare(&Engine::thread_main);
    idle_.push_back(fiber.get());
  }
}

void Engine::abandon(const std::string& what) {
  in_kernel_ = false;
  failure_ = std::make_exception_ptr(error(what));
  switch_context(threads_[size_t(current_)].fiber->context, scheduler_);
  abort();
}

void Engine::note_system_atomic(const Site& site) {
  if (++system_atomics_ > 1) throw error("more than one atomic on memory of the host: " + place(site));
}

void Engine::barrier(const Site& site) {
  in_kernel_ = false;
  threads_[size_t(current_)].site = site;
  suspend(Thread::State::kBarrier);
}

void Engine::watch(Access kind, const void* address, size_t bytes, const void* pc) {
  if (!in_kernel_) return;
  in_kernel_ = false;
  const Fiber& fiber = *threads_[size_t(current_)].fiber;
  const Range stack{fiber.stack_begin(), fiber.stack_end()};
  const auto place = reinterpret_cast<uintptr_t>(address);
  if (counter_) counter_->access(kind, place, bytes, block_, current_, stack, pc);
  if (checked_) {
    std::string wrong = checker_->access(kind, place, bytes, current_, stack, pc);
    if (!wrong.empty()) abandon(wrong);
  }
  in_kernel_ = true;
}

void Engine::release_barrier() {
  const Thread* first = nullptr;
  for (const Thread& thread : threads_) {
    if (thread.state == Thread::State::kDone) continue;
    if (!first) first = &thread;
    if (thread.state != Thread::State::kBarrier) throw failed("deadlock: " + waiting_threads());
    if (!same_place(thread.site, first->site)) throw failed("divergent barriers: " + waiting_threads());
  }
  if (checked_ && live_ < launch_->threads)
    throw failed("a barrier that not every thread reaches: " + waiting_threads());
  if (checked_) checker_->barrier();
  for (Thread& thread : threads_) {
    if (thread.state == Thread::State::kBarrier) thread.state = Thread::State::kReady;
  }
}

std::runtime_error Engine::failed(const std::string& what) {
  std::runtime_error failure = error(what);
  reset_fibers();
  return failure;
}

// "threads 0..31 wait in __syncthreads at norm.cu:12 (norm_kernel); threads 32..63 have returned"
std::string Engine::waiting_threads() const {
  std::string text;
  for (size_t begin = 0, end = 0; begin < threads_.size(); begin = end) {
    const Thread& first = threads_[begin];
    auto alike = [&first](const Thread& thread) {
      return thread.state == first.state &&
          (first.state == Thread::State::kDone || same_place(thread.site, first.site));
    };
    while (end < threads_.size() && alike(threads_[end])) ++end;
    text += (begin ? "; threads " : "threads ") + std::to_string(begin) + ".." + std::to_string(end - 1);
    text += first.state == Thread::State::kDone ? " have returned" : " wait in " + place(first.site);
    if (text.size() > 2000) return text + "; ...";
  }
  return text;
}

void run(const Launch& launch) { Engine::get().run(launch); }
void barrier(const Site& site) { Engine::get().barrier(site); }
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, const Site& site) {
  return Engine::get().exchange(kind, mask, value, argument, width, site);
}
void* dynamic_shared_memory() { return Engine::get().shared_memory(); }
void note_system_atomic(const Site& site) { Engine::get().note_system_atomic(site); }
void trap(const Site& site) { throw Engine::get().error(place(site)); }

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) const char* emulator_checked_kernels() {
  static std::string names;
  std::lock_guard<std::mutex> lock(emulator::checked_mutex);
  names.clear();
  for (const void* kernel : emulator::checked_kernels()) names += emulator::kernel_name(kernel) + "\n";
  return names.c_str();
}
