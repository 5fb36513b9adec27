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

.PHONY: demo test test-fastai lint build clean

demo: $(COMPILED)
	$(PY) -m lstmkern demo

test: $(COMPILED)
	$(PY) -m pytest

# fastai beside the same torch, in an environment of its own: its other needs would crowd ours.
FASTAI_VENV := .venv-fastai
test-fastai: $(COMPILED) $(FASTAI_VENV)/.ready
	$(FASTAI_VENV)/bin/python -m pytest tests/fastai

$(FASTAI_VENV)/.ready: requirements-fastai.txt
	$(PYTHON) -m venv $(FASTAI_VENV)
	$(FASTAI_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(FASTAI_VENV)/bin/python -m pip install --quiet -r requirements-fastai.txt
	$(FASTAI_VENV)/bin/python -m pip install --quiet --no-deps fastai
	@touch $@

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
