"""The CUDA kernels on a machine with a GPU, in a few minutes of its time: `make gpu-first`, `gpu-check`, `gpu-bench`.

__main__.py     runs a command's parts, one after the other or side by side, and prints the table of what there is
parts.py        the parts of each command and their limits
records.py      the JSON-lines file that every part appends to
extension.py    the compiled extension: loads the local or the carried one, or builds one
build_for.py    builds an extension for another Python and torch (`make gpu-build-for`)
device.py       everything in Python that only a GPU can do (tools.py: programs); host.py: the same names on the CPU
layers.py       the layers that are run: shapes, references, floors, what cuDNN does with them
facts.py, smoke.py, bench.py, compare.py, tests.py, sanitize.py, profile.py     the parts themselves
tables.py       the tables at the end; plot.py, a picture

The files that need no torch (parts, records, extension, build_for, tables, __main__) import none: they must work where
torch does not.
"""
