# make demo | test | ladder | text | test-fastai | test-asan | lint | build | bench | bench-quick | bench-guard |
# test-cuda-build | mutations | gpu-first | gpu-check | gpu-bench | gpu-build-for. Overridable: PYTHON, TORCH (what pip
# installs), VENV (empty: the active environment, which must have torch, is used as it is).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
SHELL := /bin/bash

SOURCES := $(shell find csrc -type f) setup.py
ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
endif
# One stamp per interpreter: an extension built for one torch does not load in another.
COMPILED := build/.compiled-$(subst /,_,$(PY))

.PHONY: demo test ladder text test-fastai test-asan lint build bench bench-quick bench-guard bench-peers test-cuda-build \
  mutations gpu-first gpu-check gpu-bench gpu-build-for clean

demo: $(COMPILED)
	$(PY) -m lstmkern demo

# NVIDIA's disassembler, for tests/test_sass.py and benchmarks.sass: fetched where there is an nvcc without it. Without a
# network it stays away, and what needs it is skipped.
DISASSEMBLER := build/disassembler/nvdisasm
DISASSEMBLER_WANTED = $(and $(shell command -v nvcc),$(if $(shell command -v nvdisasm)$(wildcard \
  $(CUDA_HOME)/bin/nvdisasm),,$(DISASSEMBLER)))
$(DISASSEMBLER): | $(READY)
	-$(PY) -m pip install --quiet --no-deps --target build/disassembler/wheel nvidia-cuda-nvdisasm==13.5.37 && \
	  mv "$$(find build/disassembler/wheel -name nvdisasm -type f)" $@ && chmod +x $@
	@rm -rf build/disassembler/wheel

# pytest on every core, where pytest-xdist is there. Each process keeps all its threads, so that the same is tested as in
# one process; but those that wait sleep instead of spinning on a core that another process needs.
SPREAD = -m pytest $$($(1) -c "import xdist" 2> /dev/null && echo "-n auto --dist worksteal")
test: export OMP_WAIT_POLICY := passive
test: $(COMPILED) $(DISASSEMBLER_WANTED)
	$(PY) $(call SPREAD,$(PY))

# The language models' full runs; results, with the machine they are from, go to benchmarks/results.
ladder text: $(COMPILED)
	$(PY) -m benchmarks.language $@

# fastai beside the same torch, in an environment of its own: its other needs would crowd ours.
FASTAI_VENV := .venv-fastai
test-fastai: $(COMPILED) $(FASTAI_VENV)/.ready
	$(FASTAI_VENV)/bin/python -m pytest -p no:cacheprovider tests/fastai

$(FASTAI_VENV)/.ready: requirements-fastai.txt
	$(PYTHON) -m venv $(FASTAI_VENV)
	$(FASTAI_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(FASTAI_VENV)/bin/python -m pip install --quiet -r requirements-fastai.txt
	$(FASTAI_VENV)/bin/python -m pip install --quiet --no-deps fastai
	@touch $@

lint: $(READY)
	@! git grep -nE "^(<{7}|>{7}) "  # what a merge left
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	PATH="$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH" clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu')

build: $(COMPILED)

$(COMPILED): $(SOURCES) | $(READY)
	$(PY) setup.py build_ext --inplace
	@touch $@

$(VENV)/.ready: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

# The table of goals for this machine, in three minutes.
bench-quick: $(COMPILED)
	$(PY) -m lstmkern bench --quick

# Everything, half an hour; leaves JSON and plots in benchmarks/results and the tables in README.
# The peers of requirements-bench.txt take part where they are installed (make bench-peers), and perf where that is.
BENCH_OUT := benchmarks/results
bench: $(COMPILED)
	$(PY) -m lstmkern bench --out $(BENCH_OUT)
	$(PY) -m pytest benchmarks --results $(BENCH_OUT)
	$(PY) -m benchmarks.models --out $(BENCH_OUT)/models.json
	$(PY) -m benchmarks.growth --out $(BENCH_OUT)
	$(PY) -m benchmarks.bounds --out $(BENCH_OUT)
	$(PY) -m benchmarks.hotspots --out $(BENCH_OUT)
	$(PY) -m benchmarks.guard
	$(PY) -m benchmarks.readme --results $(BENCH_OUT)

bench-peers: $(READY)
	$(PY) -m pip install --quiet -r requirements-bench.txt

# Instructions of small layers beside the committed baseline (needs valgrind; ratios to torch.nn without).
bench-guard: $(COMPILED)
	$(PY) -m benchmarks.guard

# The complete extension against the CUDA build of torch, on a machine without a GPU (tests/cuda_build.sh).
test-cuda-build:
	PYTHON=$(PYTHON) tests/cuda_build.sh

# The kernel part of the tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer; what depends on
# the instruction set once more for each (those for bf16 alone: with bf16 alone). The libraries must be there before
# Python is, which is not built with them; its own leaks are not our business. The sanitizers do not see what tile
# instructions read.
ASAN := build/asan
ASAN_PY := $(if $(READY),$(abspath $(PY)),$(PY))
ASAN_RUN = cd $(ASAN) && ASAN_OPTIONS=detect_leaks=0:use_sigaltstack=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
  OMP_WAIT_POLICY=passive LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
  $(ASAN_PY) $(call SPREAD,$(ASAN_PY)) -x -s -p no:cacheprovider -W ignore
test-asan: $(ASAN)/.built
	$(ASAN_RUN) $(addprefix tests/test_,elementwise.py parity.py varlen.py beyond.py cells.py nonfinite.py threads.py memory.py)
	for variant in avx512_bf16 avx512 avx2 baseline; do echo "== $$variant"; export LSTMKERN_CPU_CAPABILITY=$$variant; \
	  case $$variant in avx512*) only=bf16;; *) only=;; esac; \
	  ($(ASAN_RUN) tests/test_parity.py -k "$$only") || exit 1; done

$(ASAN)/.built: $(SOURCES) $(shell find lstmkern tests -name '*.py') | $(READY)
	mkdir -p $(ASAN) && rm -f $(ASAN)/lstmkern/_C*.so
	tar -c --exclude='*.so' --exclude=__pycache__ lstmkern tests pyproject.toml | tar -x -C $(ASAN)
	LSTMKERN_SANITIZE=1 LSTMKERN_CUDA=0 $(PY) setup.py build_ext --build-temp $(ASAN)/temp --build-lib $(ASAN)
	@touch $@

# Faults put into the CUDA kernels, one at a time: the simulator's tests must notice each.
mutations: $(READY)
	$(PY) tests/simt/mutations.py

# On a machine with a GPU, with its own python3 and CUDA build of torch (VENV is not used): first 220 seconds at most, then
# 200, then 150. Each ends with a table; results go to $OUT or benchmarks/results. With DEVICE=cpu a rehearsal of all that
# surrounds the kernels, on any machine. ONLY=smoke,tests: these parts alone. VARIANTS: benchmarks/gpu/compare.py.
DEVICE ?= cuda
ONLY ?=
GPU_PY = $(PYTHON)
ifeq ($(DEVICE),cpu)
GPU_PY = $(PY)
gpu-first gpu-check gpu-bench: $(COMPILED)
endif
gpu-first gpu-check gpu-bench:
	@$(GPU_PY) -m benchmarks.gpu $(@:gpu-%=%) --device "$(DEVICE)" --only "$(ONLY)"

# The extension for such a machine, built on this one, which needs no GPU: make gpu-build-for PY=python3.12
# TORCH=torch==2.11.0. It goes to carry/, where gpu-first, gpu-check and gpu-bench find it.
gpu-build-for:
	@$(PYTHON) -m benchmarks.gpu.build_for --python "$(PY)" --torch "$(TORCH)"

clean:
	rm -rf build lstmkern/_C*.so
