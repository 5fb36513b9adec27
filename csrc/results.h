// Tensors for the CPU kernels' results, in memory that is cached and reused (cpu/memory.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace lstmkern {

// As at::empty: a dense tensor on the CPU with undefined contents.
at::Tensor empty_result(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace lstmkern
