// The layers' GEMMs by themselves, with the layers' microkernels and memory layout; the sums are not used. See
// product.h.

// As in a step of the forward kernel (gates > 1) or of the backward kernel.
template <class S>
void multiply_part_rows(const ProductPart& part_of, int64_t rounds) {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const Product& p = part_of.product;
  const X *panels = static_cast<const X*>(part_of.panels), *rows = static_cast<const X*>(part_of.rows);
  const GatePanels<X, C> units{p.columns, p.gates};
  const int64_t ld = spread<X>(depth<X>(p.K));
  const int rank = part_of.rank, size = part_of.size;
  const bool large = units.packed(p.K) * int64_t(sizeof(X)) > cached_bytes(on_tiles<X>);
  const bool by_rows =
      large ? large_weights_divide_rows(p.rows, size, units.panels(), on_tiles<X>, 0) : p.rows >= 8 * size;
  const int64_t j0 = by_rows ? part(p.rows, rank, size) : 0, j1 = by_rows ? part(p.rows, rank + 1, size) : p.rows,
                i0 = by_rows ? 0 : part(units.panels(), rank, size),
                i1 = by_rows ? units.panels() : part(units.panels(), rank + 1, size);
  for (int64_t round = 0; round < rounds; ++round)
    for (int64_t i = i0; i < i1; ++i) {
      // Panels forwards and backwards in turn, as in a layer.
      auto panel = [&](int64_t k) { return units.panel(round & 1 ? i0 + i1 - 1 - k : k); };
      const Panel now = panel(i), next = panel(i + 1 < i1 ? i + 1 : i);
      multiply_panel<C>(
          p.rows == 1, j0, j1, now.nv, p.K, panels + units.offset(now, p.K), panels + units.offset(next, p.K),
          [&](int64_t j) { return rows + j * ld; },
          [](int64_t, int, C* sums) {
            asm volatile("" : : "r"(sums) : "memory");
          });
    }
}

// As in the GEMM of the weight gradients. The same packed tiles are used again for all rows.
template <class S>
void multiply_part_transposed(const ProductPart& part_of, int64_t rounds) {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  constexpr int height = kPackedColumns<X>, run = 64 / height;
  const Product& p = part_of.product;
  const X *panels = static_cast<const X*>(part_of.panels), *packed = static_cast<const X*>(part_of.rows);
  const Columns<C, kPackedWidth<X>> columns{p.columns};
  const int64_t all = (p.rows + height - 1) / height, first = part(all, part_of.rank, part_of.size),
                last = part(all, part_of.rank + 1, part_of.size);
  for (int64_t round = 0; round < rounds; ++round)
    for (int64_t from = first; from < last; from += run) {
      const int64_t tiles = last - from < run ? last - from : run;
      for (int64_t q = 0; q < columns.panels(); ++q) {
        const Panel panel = columns.panel(q);
        const X* values = panels + panel.template offset<X>(p.K);
        const int64_t size = panel.nv * width<C> * depth<X>(p.K);
        for (int64_t i = 0; i < tiles; ++i) {
          Tile<C> tile;
          multiply_packed(panel.nv, packed + i * height * depth<X>(p.K), values, p.K, tile,
                          values + size + i * (size / tiles), size / tiles);
          asm volatile("" : : "r"(&tile) : "memory");
        }
      }
    }
}

template <class S>
void multiply_part_typed(const ProductPart& part_of, int64_t rounds) {
  [[maybe_unused]] Products<typename Types<S>::Operand> scope;
  if (part_of.product.transposed) return multiply_part_transposed<S>(part_of, rounds);
  multiply_part_rows<S>(part_of, rounds);
}

#if LSTMKERN_BF16
void multiply_part(const ProductPart& part_of, int64_t rounds) { multiply_part_typed<bf16>(part_of, rounds); }
#else
void multiply_part(const ProductPart& part_of, int64_t rounds) {
  if (part_of.product.dtype == DType::f64) return multiply_part_typed<double>(part_of, rounds);
  multiply_part_typed<float>(part_of, rounds);  // 16-bit values are multiplied as fp32 here
}
#endif
