// Stands before torch's `torch_parallel_for`, which the CPU loops call, and counts the parallel regions that it opens.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>

namespace {
std::atomic<int64_t> regions{0};
thread_local bool within = false;

using Body = void (*)(int64_t, int64_t, void*);
struct Call {
  Body body;
  void* context;
};

void run(int64_t begin, int64_t end, void* context) {
  const Call& call = *static_cast<Call*>(context);
  const bool outer = within;
  within = true;
  call.body(begin, end, call.context);
  within = outer;
}
}  // namespace

extern "C" int64_t take_regions() { return regions.exchange(0); }

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, Body body, void* context) {
  using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, Body, void*);
  static const auto of_torch =
      reinterpret_cast<ParallelFor>(dlsym(dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD), "torch_parallel_for"));
  // The condition of at::parallel_for, at two threads.
  if (within || end - begin <= grain || end - begin <= 1) return of_torch(begin, end, grain, body, context);
  ++regions;
  Call call{body, context};
  return of_torch(begin, end, grain, run, &call);
}
