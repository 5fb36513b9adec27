"""What is measured, and how (README.md). A package of its own: no other `benchmarks` on the path can take its place."""
