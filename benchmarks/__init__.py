"""The benchmark suite; see docs/benchmarks/. A package, so that no other `benchmarks` is imported instead."""
