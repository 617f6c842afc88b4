// Calls of pack_codes and unpack_codes: their checks.
#pragma once

#include "core/groups.h"
#include "core/quantize/codes.h"
#include "ops/checks.h"

namespace ste_ops {

// The numbers that codes stand for, checked: `values`, ascending, times a scale for each of the groups of `inner`
// elements that follow each other in memory.
struct CodeTable {
  Tensor values;
  std::optional<Tensor> scale;
  Groups groups;
  int bits;

  // x: what is packed, or unpacked into.
  CodeTable(
      const char* op, const char* name, const Tensor& x, const Tensor& values, const std::optional<Tensor>& scale,
      int64_t inner, int64_t bits)
      : values(values), scale(scale), groups(whole_tensor(x.numel())), bits(int(bits)) {
    STE_CHECK(bits == 1 || bits == 2 || bits == 4 || bits == 8, op, ": bits must be 1, 2, 4 or 8, got ", bits);
    STE_CHECK(x.is_contiguous(), op, ": ", name, " must be contiguous");
    check_numbers(op, "values", values, name, x);
    const int64_t most = int64_t(1) << bits;
    STE_CHECK(
        values.numel() >= 1 && values.numel() <= most, op, ": values must have 1 to ", most, " elements, got ",
        values.numel());
    if (!scale) return;
    check_numbers(op, "scale", *scale, name, x);
    const int64_t size = scale->numel();
    STE_CHECK(
        inner >= 1 && size >= 1 && x.numel() % (size * inner) == 0, op, ": ", name, " must hold whole periods of ",
        size, " scales for ", inner, " elements each, got ", x.numel(), " elements");
    groups = {1, x.numel() / (size * inner), size, inner};
  }

  int count() const { return int(values.numel()); }

 private:
  static void check_numbers(
      const char* op, const char* argument, const Tensor& numbers, const char* name, const Tensor& x) {
    STE_CHECK(
        numbers.scalar_type() == arithmetic_type(x) && numbers.is_contiguous(), op, ": ", argument,
        " must be contiguous ", torch::headeronly::toString(arithmetic_type(x)), ", got ",
        torch::headeronly::toString(numbers.scalar_type()));
    STE_CHECK(numbers.device() == x.device(), op, ": ", argument, " and ", name, " must be on one device");
  }
};

// Of the codes of x, with the bytes of its runs.
inline int64_t packed_bytes(const char* op, const char* name, const Tensor& x, int bits) {
  int64_t runs = 0;
  dispatch_elements(op, name, x, [&](auto type) { runs = code_runs<typename decltype(type)::type>(x.numel()); });
  return code_bytes(x.numel(), bits) + runs;
}

inline void check_codes(const char* op, const Tensor& codes, const Tensor& out, int64_t bytes) {
  STE_CHECK(
      codes.scalar_type() == ScalarType::Byte && codes.is_contiguous() && codes.numel() == bytes, op,
      ": codes must be ", bytes, " contiguous bytes for ", out.numel(), " elements, got ", codes.numel(), " of ",
      torch::headeronly::toString(codes.scalar_type()));
  STE_CHECK(codes.device() == out.device(), op, ": codes and out must be on one device");
}

}  // namespace ste_ops
