# make demo | test | lint | build. Overridable: PYTHON, TORCH (what pip installs), VENV (empty: the active environment,
# which must have torch, is used as it is).
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

.PHONY: demo test lint build clean

demo: $(COMPILED)
	$(PY) -m lstmkern demo

test: $(COMPILED)
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(dir $(PY))clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu')

build: $(COMPILED)

$(COMPILED): $(SOURCES) | $(READY)
	$(PY) setup.py build_ext --inplace
	@touch $@

$(VENV)/.ready: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:
	rm -rf build lstmkern/_C*.so
