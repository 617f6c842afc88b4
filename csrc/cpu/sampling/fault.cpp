// On the CPU every fault is raised at once: none is deferred.
#include "ops/dispatch.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

void raise_deferred_cpu(Tensor) {}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("raise_deferred", TORCH_BOX(&raise_deferred_cpu)); }

}  // namespace ste_ops
