# make demo | build | lint | docs | docs-check | test | test-fastai | test-asan | test-cuda-build | mutations | wheel |
# wheels | check-all | bench | bench-quick | bench-guard | bench-peers | ladder | text | gpu-first | gpu-check | gpu-bench |
# gpu-build-for | clean.
# Variables: PYTHON, the interpreter; TORCH, what pip installs; VENV, the environment that is created. With VENV= the
# active environment is used without changes; it must have torch.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
SHELL := /bin/bash

SOURCES := $(shell find csrc -type f) setup.py
ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
READY :=
DOCS_READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
endif
# One stamp file per interpreter: an extension compiled for one torch does not load in another.
COMPILED := build/.compiled-$(subst /,_,$(PY))

.PHONY: demo test ladder text test-fastai test-asan lint build bench bench-quick bench-guard bench-peers test-cuda-build \
  wheel wheels mutations gpu-first gpu-check gpu-bench gpu-build-for check-all clean

demo: $(COMPILED)
	$(PY) -m lstmkern demo

# NVIDIA's disassembler, for tests/test_sass.py and benchmarks.sass. It is downloaded if there is an nvcc without it. If
# the download fails, the tests that need it are skipped.
DISASSEMBLER := build/disassembler/nvdisasm
DISASSEMBLER_WANTED = $(and $(shell command -v nvcc),$(if $(shell command -v nvdisasm)$(wildcard \
  $(CUDA_HOME)/bin/nvdisasm),,$(DISASSEMBLER)))
$(DISASSEMBLER): | $(READY)
	-$(PY) -m pip install --quiet --no-deps --target build/disassembler/wheel nvidia-cuda-nvdisasm==13.5.37 && \
	  mv "$$(find build/disassembler/wheel -name nvdisasm -type f)" $@ && chmod +x $@
	@rm -rf build/disassembler/wheel

# A wheel for this Python and torch, in dist/, tested in a new environment (tests/wheel.py).
# RECORD=benchmarks/results/wheels.json adds the result to that file.
RECORD ?=
wheel: $(COMPILED)
	$(PY) tests/wheel.py --torch "$(TORCH)" $(if $(RECORD),--record "$(RECORD)")

# The same for other Pythons, which must be on PATH as python3.12 and so on: make wheels PYTHONS="3.10 3.12".
PYTHONS ?= 3.10 3.11 3.12 3.13
wheels:
	@for version in $(PYTHONS); do python$$version -c "" || \
	  { echo "make wheels: python$$version does not run: put it on PATH or leave it out of PYTHONS" >&2; exit 1; }; done
	@for version in $(PYTHONS); do $(MAKE) wheel PYTHON=python$$version VENV=.venv-$$version || exit 1; done

# pytest on every core, if pytest-xdist is installed. Each process keeps all its threads, so that it tests the same as a
# single process. Threads that wait must sleep (OMP_WAIT_POLICY) instead of spinning on a core that another process needs.
SPREAD = -m pytest $$($(1) -c "import xdist" 2> /dev/null && echo "-n auto --dist worksteal")
test: export OMP_WAIT_POLICY := passive
test: $(COMPILED) $(DISASSEMBLER_WANTED)
	$(PY) $(call SPREAD,$(PY))

# Full trainings of the language models. Results go to benchmarks/results; each file names its machine.
ladder text: $(COMPILED)
	$(PY) -m benchmarks.language $@

# fastai with the same torch, in a separate environment because it requires many packages.
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

# The documentation site, in build/docs: warnings are errors, then every link, anchor and public name is checked.
.PHONY: docs docs-check
docs: $(COMPILED) $(DOCS_READY)
	rm -rf build/docs
	$(PY) -m sphinx -q -E -W --keep-going -b html -d build/docs-parsed docs build/docs
	$(PY) -m pytest -p no:cacheprovider tests/site/check_html.py

# Every page in headless Chromium: `apt-get install chromium` first. Screenshots go to build/docs-screenshots.
docs-check: docs
	$(PY) -m pytest -p no:cacheprovider tests/site/check_browser.py

build: $(COMPILED)

$(COMPILED): $(SOURCES) | $(READY)
	$(PY) setup.py build_ext --inplace
	@touch $@

$(VENV)/.ready: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

$(VENV)/.docs-ready: requirements-docs.txt | $(READY)
	$(PY) -m pip install --quiet -r requirements-docs.txt
	@touch $@

# The table of goals for this machine, in three minutes.
bench-quick: $(COMPILED)
	$(PY) -m lstmkern bench --quick

# All benchmarks, forty minutes. Writes JSON and plots to benchmarks/results and updates the tables in README.
# Peers of requirements-bench.txt (make bench-peers) and Linux perf are used if they are installed.
BENCH_OUT := benchmarks/results
bench: $(COMPILED)
	$(PY) -m lstmkern bench --out $(BENCH_OUT)
	$(PY) -m pytest benchmarks --results $(BENCH_OUT)
	$(PY) -m benchmarks.models --out $(BENCH_OUT)/models.json
	$(PY) -m benchmarks.bench_small --out $(BENCH_OUT)
	$(PY) -m benchmarks.growth --out $(BENCH_OUT)
	$(PY) -m benchmarks.bounds --out $(BENCH_OUT)
	$(PY) -m benchmarks.hotspots --out $(BENCH_OUT)
	$(PY) -m benchmarks.guard
	$(PY) -m benchmarks.readme --results $(BENCH_OUT)

bench-peers: $(READY)
	$(PY) -m pip install --quiet -r requirements-bench.txt

# Instruction counts of small layers, compared with the committed ones. Without valgrind, ratios to torch.nn instead.
bench-guard: $(COMPILED)
	$(PY) -m benchmarks.guard

# Builds the complete extension against the CUDA build of torch; needs no GPU (tests/cuda_build.sh).
test-cuda-build:
	PYTHON=$(PYTHON) tests/cuda_build.sh

# The tests of the kernels on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer. test_parity.py also
# runs once per instruction set; for the AVX-512 sets only its bf16 tests. Python is not built with the sanitizers, so their
# libraries are preloaded, and leaks, which would be Python's own, are not reported. The sanitizers do not see what AMX
# instructions read.
ASAN := build/asan
ASAN_PY := $(if $(READY),$(abspath $(PY)),$(PY))
ASAN_RUN = cd $(ASAN) && ASAN_OPTIONS=detect_leaks=0:use_sigaltstack=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
  LSTMKERN_TEST_TEAM=2 OMP_WAIT_POLICY=passive LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
  $(ASAN_PY) $(call SPREAD,$(ASAN_PY)) -x -s -p no:cacheprovider -W ignore
test-asan: $(ASAN)/.built
	$(ASAN_RUN) $(addprefix tests/test_,elementwise.py parity.py hidden_sizes.py varlen.py beyond.py cells.py nonfinite.py threads.py memory.py)
	for variant in avx512_bf16 avx512 avx2 baseline; do echo "== $$variant"; export LSTMKERN_CPU_CAPABILITY=$$variant; \
	  case $$variant in avx512*) only=bf16;; *) only=;; esac; \
	  ($(ASAN_RUN) tests/test_parity.py -k "$$only") || exit 1; done

$(ASAN)/.built: $(SOURCES) $(shell find lstmkern tests -name '*.py') | $(READY)
	mkdir -p $(ASAN) && rm -f $(ASAN)/lstmkern/_C*.so
	tar -c --exclude='*.so' --exclude=__pycache__ lstmkern tests pyproject.toml | tar -x -C $(ASAN)
	LSTMKERN_SANITIZE=1 LSTMKERN_CUDA=0 $(PY) setup.py build_ext --build-temp $(ASAN)/temp --build-lib $(ASAN)
	@touch $@

# Puts faults into the CUDA kernels, one at a time. The tests on the simulator must notice each.
mutations: $(READY)
	$(PY) tests/simt/mutations.py

# For a machine with a GPU. They use its python3 and its CUDA build of torch, not VENV, and take at most 220, 200 and 150
# seconds. Each ends with a table; results go to $OUT or benchmarks/results. DEVICE=cpu rehearses everything except the
# CUDA kernels, on any machine. ONLY=smoke,tests runs only these parts. VARIANTS: see benchmarks/gpu/compare.py.
DEVICE ?= cuda
ONLY ?=
GPU_PY = $(PYTHON)
ifeq ($(DEVICE),cpu)
GPU_PY = $(PY)
gpu-first gpu-check gpu-bench: $(COMPILED)
endif
gpu-first gpu-check gpu-bench:
	@$(GPU_PY) -m benchmarks.gpu $(@:gpu-%=%) --device "$(DEVICE)" --only "$(ONLY)"

# Builds the extension for such a machine on this one, which needs no GPU: make gpu-build-for PY=python3.12
# TORCH=torch==2.11.0. The result is in carry/, where gpu-first, gpu-check and gpu-bench find it.
gpu-build-for:
	@$(PYTHON) -m benchmarks.gpu.build_for --python "$(PY)" --torch "$(TORCH)"

# Before a release: all of .ci/run, and what is slow or needs more on the machine.
check-all:
	.ci/run
	$(MAKE) docs-check
	$(MAKE) wheels
	$(MAKE) bench-guard

clean:
	rm -rf build lstmkern/_C*.so
