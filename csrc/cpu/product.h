// The GEMMs of a layer without the rest of the layer, for the benchmarks.
#pragma once

#include <cstdint>

#include "../layer.h"

namespace lstmkern {
namespace cpu {

// A GEMM of [rows, K] by [K, gates * columns] with a layer's packed panels: `gates` registers wide if there are several
// gates (as in forward), otherwise kWide (as backward's GEMMs for dh and dx). transposed: as the GEMM of the weight
// gradients, whose left operand is packed from the columns of a row-major matrix; gates must be 1.
struct Product {
  DType dtype;  // of the layer; the operands may be wider
  int64_t rows, K, columns;
  int gates;  // 1, 3 or 4
  bool transposed;
};

// One thread's part of a GEMM.
struct ProductPart {
  const Product& product;
  const void *panels, *rows;
  int rank, size;
};

// Seconds per GEMM on `threads` threads, measured for about `seconds` (at least twice). The threads divide it as those
// of a layer do, and the sums stay in the microkernel's tile. std::invalid_argument for sizes that no layer has.
double product_seconds(const Product& product, int threads, double seconds);

}  // namespace cpu
}  // namespace lstmkern
