"""Code shared by `python -m lstmkern bench` and benchmarks/: interleaved timing, the roofline, cases and reports."""
