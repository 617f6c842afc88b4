// Stands before OpenMP's `GOMP_parallel` and counts the parallel regions that are opened, by the CPU loops and by
// torch.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>

namespace {
std::atomic<int64_t> regions{0};
using Body = void (*)(void*);
}  // namespace

extern "C" int64_t take_regions() { return regions.exchange(0); }

extern "C" void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  using Parallel = void (*)(Body, void*, unsigned, unsigned);
  static const auto of_openmp = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  ++regions;
  of_openmp(body, data, threads, flags);
}
