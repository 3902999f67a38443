# gtopk: `make help` lists what can be made.
#
# This file has the settings; make/*.mk have the rules, one purpose each. All paths are relative, so that the tree may
# lie under a path with spaces. docs/development.md explains the whole.
BUILD  ?= build
CC     ?= cc
PREFIX ?= /usr/local
PYTHON ?= python3
VENV   ?= .venv
CACHE  ?= .cache

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# V=1 shows the commands in full.
Q := $(if $(V),,@)

include make/library.mk
include make/cuda.mk
include make/environment.mk
include make/tests.mk
include make/gpu.mk
include make/cross.mk
include make/bench.mk
include make/lint.mk
include make/package.mk
include make/docs.mk

help:
	@sed -n -e 's/^#= \(.*\)/\1:/p' -e 's/^#: /  /p' $(filter %.mk,$(MAKEFILE_LIST)) $(firstword $(MAKEFILE_LIST))
	@echo 'Settings: BUILD=build CC=cc CFLAGS= PREFIX=/usr/local PYTHON=python3 VENV=.venv CACHE=.cache CUDA=auto V=1'

#: make clean            removes what was built; the environment and downloads stay (rm -r .venv .cache)
clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(BUILD)-clang $(BUILD)-aarch64 dist python/gtopk.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help clean
