"""Runs the CUDA kernels on a machine with a GPU, in a few minutes of its time: `make gpu-first`, `gpu-check`,
`gpu-bench`.

__main__.py     runs a command's parts, one after the other or side by side, and prints the final tables
parts.py        the parts of each command and their time limits
records.py      the JSON-lines file that every part appends to
extension.py    finds a compiled extension that loads: a local or a carried one, or a new build
build_for.py    builds an extension for another Python and torch (`make gpu-build-for`)
device.py       everything in Python that needs a GPU (tools.py: programs); host.py: the same names on the CPU
layers.py       the layers that are run: shapes, references, lower bounds of their time, cuDNN's code path
facts.py, smoke.py, bench.py, compare.py, tests.py, sanitize.py, profile.py     the parts
tables.py       the final tables; plot.py: a picture

parts, records, extension, build_for, tables and __main__ do not import torch, because they must also work where torch
does not.
"""
