// What the module _C offers to Python of sampling, besides its registered operators.
#pragma once

#include "cpu/python.h"

namespace ste_ops {

// (weights, seed, out) -> bool: the operator multinomial_with_replacement, written to `out`. False where `out` holds no
// draws because the operator has to look: the tensors are no plain row-major ones on the CPU, or a weight is invalid.
PyObject* draw_with_replacement(PyObject* module, PyObject* arguments);

}  // namespace ste_ops
