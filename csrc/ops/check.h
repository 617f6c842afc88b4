// Refusals, in the words of the caller alone: STD_TORCH_CHECK would begin with a C++ function and its file.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <stdexcept>

namespace ste_ops {

template <typename... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void check_failed(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace ste_ops

// The parts of the message are computed only where it is refused.
#define STE_CHECK(condition, ...) \
  if (C10_UNLIKELY(!(condition))) ::ste_ops::check_failed(__VA_ARGS__)
