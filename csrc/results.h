// Tensors for the CPU kernels' results, on memory that is used again (cpu/memory.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace lstmkern {

// As at::empty: on the CPU, dense, of undefined contents.
at::Tensor empty_result(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace lstmkern
