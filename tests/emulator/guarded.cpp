// Every CPU tensor made after emulator_guard(1) lies between two guard zones, and the checker knows where: an access
// beside it does not land in the next tensor. Only in the library of the operators, the one that knows torch.
#undef TORCH_TARGET_VERSION  // the allocator is no part of the stable ABI
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>

#include "checker.h"

namespace {

constexpr size_t kAlignment = 64;  // torch's own
constexpr size_t kGuard = 16 * kAlignment;

class Guarded final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes + 2 * kGuard) != 0) throw std::bad_alloc();
    char* data = static_cast<char*>(memory) + kGuard;
    emulator::add_allocation(data, bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void release(void* data) {
    if (!data) return;
    emulator::remove_allocation(data);
    free(static_cast<char*>(data) - kGuard);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void emulator_guard(int on) {
  static auto* guarded = new Guarded;  // outlives every tensor
  static c10::Allocator* torchs = c10::GetCPUAllocator();
  c10::SetCPUAllocator(on ? guarded : torchs, 255);
}
