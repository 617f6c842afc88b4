// What the module _C offers to Python besides its registered operators.
#pragma once

#include "cpu/python.h"

namespace ste_ops {

// (parameters, max_norm, norm_type, nonfinite, may_lack) -> (norm, has_float64, grads): the operator clip_grad_norm_ on
// the gradients of a list of parameters. None where nothing was done because the operator has to look: not every
// gradient is a plain strided tensor on the CPU, or one is None and may_lack is false.
PyObject* clip_grad_norm_list(PyObject* module, PyObject* arguments);

}  // namespace ste_ops
