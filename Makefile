# `make demo` and `make test` do all their own set-up on Debian 12 or Ubuntu with Python 3.11 or newer.
# Nothing outside this folder changes, but `make test` as root installs missing Debian packages (.ci/prepare-tests).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
TEST_WORKERS ?= 2
# a command that runs beside the tests that mostly wait, for processes and guests
BESIDE ?=
# pytest's 5 = nothing selected: a mistake, unless TEST_ARGS selects
NONE_IS_FINE = $(if $(TEST_ARGS),|| [ $$? = 5 ])

# QEMU without hardware virtualization now and then starts a move that never moves: what failed has a second try, alone, on fresh guests
AGAIN = echo "tidegate: once more, alone:" && $(BIN)/python -m pytest -m "realhost and not long" --last-failed --last-failed-no-failures none $(TEST_ARGS)

# one stamp per content of the files that say what is installed: a changed pin reinstalls, a changed date does not
KEY := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
READY_RUN := $(VENV)/.run-$(KEY)
READY_DEV := $(VENV)/.dev-$(KEY)
PIP_INSTALL = PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo test test-long lint types imports check clean

help:
	@sed -n 's/^## //p' Makefile

## demo     run the product here with simulated hosts; DEMO_ARGS="--hours 6 --speed 300" and more: tidegate demo --help
demo: $(READY_RUN)
	$(BIN)/tidegate demo $(DEMO_ARGS)

## test     every test that this machine can run; TEST_ARGS goes to pytest
test: export PATH := $(abspath $(BIN)):$(PATH)
test: $(READY_DEV)
	.ci/prepare-tests $(VENV)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not ring and not realhost and not browser and not long" $(TEST_ARGS) $(NONE_IS_FINE)
	$(if $(BESIDE),$(BESIDE) > /dev/null 2>&1 < /dev/null &)
	$(BIN)/python -m pytest -m "ring and not long" $(or $(TEST_ARGS),tests/e2e) $(NONE_IS_FINE) # apart: its processes run a hundred times faster than time, beside whatever runs
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "realhost and not long" --durations=25 $(TEST_ARGS) || case $$? in 1) $(AGAIN) ;; 5) $(if $(TEST_ARGS),true,false) ;; *) false ;; esac
	$(BIN)/python -m pytest -m browser $(or $(TEST_ARGS),tests/browser) $(NONE_IS_FINE) # apart: playwright keeps an event loop running in its thread

## test-long what takes minutes for a case that a shorter test has nearly covered; no part of test
test-long: export PATH := $(abspath $(BIN)):$(PATH)
test-long: $(READY_DEV)
	.ci/prepare-tests $(VENV)
	$(BIN)/python -m pytest -m long $(TEST_ARGS)

## lint     ruff: rules and format
lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## types    mypy --strict
types: $(READY_DEV)
	$(BIN)/mypy

## imports  the floors of the house: who may import whom
imports: $(READY_DEV)
	$(BIN)/lint-imports

## check    lint, types, imports
check: lint types imports

## clean    remove the environment, caches and what builds leave behind
clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .tidegate
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	.ci/make-venv $(VENV)

$(READY_RUN): $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[agent,coordinator]'
	@echo "compiling the kernels of forecast and placement, once: a minute or two"
	$(BIN)/python -m coordinator.placement.warm & placement=$$!; $(BIN)/python -m coordinator.forecast.warm && wait $$placement
	rm -f $(VENV)/.run-*
	touch $@

$(READY_DEV): $(READY_RUN)
	$(PIP_INSTALL) -e '.[agent,coordinator,dev]'
	rm -f $(VENV)/.dev-*
	touch $@
