# gtopk: `make help` lists what can be made.
#
# This file has the settings and the list; make/*.mk have the rules, one purpose each. All paths are relative, so that
# the tree may lie under a path with spaces.
BUILD  ?= build
CC     ?= cc
PREFIX ?= /usr/local
PYTHON ?= python3
VENV   ?= .venv
CACHE  ?= .cache

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

include make/library.mk
include make/tests.mk

help:
	@sed -n 's/^#: //p' $(MAKEFILE_LIST)

.PHONY: help
