// What a device faults on and a CPU forgives: with -fsanitize=alignment,bounds the compiler calls these handlers at a
// misaligned access and at an index outside an array of known size. They stand in for libubsan's, which would only
// print. The layouts are those of compiler-rt's ubsan_handlers.h, which GCC shares.
#include "engine.h"

namespace {

struct Location {
  const char* file;
  uint32_t line, column;
};

struct Type {
  uint16_t kind, info;
  char name[1];
};

struct Mismatch {
  Location location;
  const Type* type;
  unsigned char log_alignment, kind;
};

struct OutOfBounds {
  Location location;
  const Type* array;
  const Type* index;
};

std::string place(const Location& location) { return std::string(location.file) + ":" + std::to_string(location.line); }

// Outside a kernel, in torch's own headers, the CPU's forgiveness is right.
void abandon(const std::string& what) {
  emulator::Engine& engine = emulator::Engine::get();
  if (engine.running()) engine.abandon(what);
}

}  // namespace

// With the types that the compiler declares them with.
extern "C" {

__attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(void* data, void* address) {
  auto& mismatch = *static_cast<Mismatch*>(data);
  auto alignment = uintptr_t(1) << mismatch.log_alignment;
  auto place_in_line = reinterpret_cast<uintptr_t>(address) % 64;
  if (place_in_line % alignment == 0) return;
  abandon(
      "misaligned access at " + place(mismatch.location) + ": " + mismatch.type->name + " needs " +
      std::to_string(alignment) + " bytes, the address is " + std::to_string(place_in_line) + " modulo 64");
}

__attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(void* data, void* index) {
  auto& access = *static_cast<OutOfBounds*>(data);
  abandon(
      "index " + std::to_string(reinterpret_cast<intptr_t>(index)) + " outside " + access.array->name + " at " +
      place(access.location));
}
}
