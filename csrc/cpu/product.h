// A layer's matrix products without the rest of the layer: what the benchmarks compare a whole layer with.
#pragma once

#include <cstdint>

#include "../layer.h"

namespace lstmkern {
namespace cpu {

// rows x K times K x (gates * columns), on panels of the layout that layers use: gates registers wide where there are
// several gates (as forward), as wide as fits otherwise (as backward's products for dh and dx). down: the product of
// weight gradients instead, whose rows are packed columns of a row-major matrix; gates must be 1.
struct Product {
  DType dtype;  // of the layer: what it multiplies may be wider
  int64_t rows, K, columns;
  int gates;  // 1, 3 or 4
  bool down;
};

// One thread's part of a product.
struct ProductPart {
  const Product& product;
  const void *panels, *rows;
  int rank, size;
};

// Seconds that a team of `threads` needs for the product, measured for about `seconds` (at least twice): rows shared
// as a layer shares them, the sums left where the microkernel puts them. std::invalid_argument if there is no such
// product.
double product_seconds(const Product& product, int threads, double seconds);

}  // namespace cpu
}  // namespace lstmkern
