// The instructions that loops take which are written once for each level of a processor, chosen when the first asks.
// STE_OPS_CPU_CAPABILITY=default, avx2 or avx512 in the environment chooses a level that the processor has.
#pragma once

#include <cstdlib>
#include <cstring>

#include "ops/check.h"

namespace ste_ops {

enum class Capability { plain, avx2, avx512 };

struct ChosenCapability {
  Capability level = Capability::plain;
  bool popcounts = false;  // whether registers of 512 bits count the bits of their lanes
  const char* refused = nullptr;
};

inline Capability best_capability() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Capability::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    return Capability::avx2;
  }
#endif
  return Capability::plain;
}

inline ChosenCapability choose_capability() {
  ChosenCapability chosen;
  chosen.level = best_capability();
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  chosen.popcounts = chosen.level == Capability::avx512 && __builtin_cpu_supports("avx512vpopcntdq");
#endif
  const char* const asked = std::getenv("STE_OPS_CPU_CAPABILITY");
  if (asked == nullptr || *asked == 0) return chosen;
  Capability level;
  if (strcmp(asked, "default") == 0) {
    level = Capability::plain;
  } else if (strcmp(asked, "avx2") == 0) {
    level = Capability::avx2;
  } else if (strcmp(asked, "avx512") == 0) {
    level = Capability::avx512;
  } else {
    chosen.refused = "must be default, avx2 or avx512";
    return chosen;
  }
  if (level > chosen.level) {
    chosen.refused = "asks for instructions that this processor lacks";
    return chosen;
  }
  chosen.level = level;
  chosen.popcounts = chosen.popcounts && level == Capability::avx512;
  return chosen;
}

inline const ChosenCapability& chosen_capability() {
  static const ChosenCapability chosen = choose_capability();
  return chosen;
}

inline const ChosenCapability& checked_capability(const char* op) {
  const ChosenCapability& chosen = chosen_capability();
  STE_CHECK(
      chosen.refused == nullptr, op, ": STE_OPS_CPU_CAPABILITY ", chosen.refused, ", got ",
      std::getenv("STE_OPS_CPU_CAPABILITY"));
  return chosen;
}

inline const char* name_of(Capability level) {
  return level == Capability::avx512 ? "avx512" : level == Capability::avx2 ? "avx2" : "default";
}

}  // namespace ste_ops
