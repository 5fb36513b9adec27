"""What `python -m lstmkern bench` and benchmarks/ share: interleaved timing, the roofline, the cases, the reports."""
