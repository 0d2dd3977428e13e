# SPDX-License-Identifier: Apache-2.0
#
# Thin on purpose: each target is one or two commands that can also be typed. `make help` lists them.

SHELL := /bin/sh
PYTEST := .venv/bin/python -m pytest
SIDE_BY_SIDE := -n 2 --dist loadgroup
UV := build/lock/bin/uv
UV_VERSION := 0.13.3
# A release becomes a pin only after it has been out for two weeks: time for others to find what is wrong with it.
LOCK_DAYS := 14

.DEFAULT_GOAL := help
.PHONY: help run test check demo setup format sizes lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

run: ## start the agent on this machine, observing only; ARGS="--duration 20s" passes options
	@tools/setup run
	@.venv/bin/memsculpt run $(ARGS)

# One thread of linear algebra each: threads of two processes that wait for each other's processor spin.
test: ## all tests that this machine can run; ARGS="tests/plan -k sizes" narrows
	@tools/setup test
	@OPENBLAS_NUM_THREADS=1 MEMSCULPT_REQUIRE="$$(tools/what-to-require)" $(PYTEST) $(or $(ARGS),$(SIDE_BY_SIDE))

check: ## what CI does: format, lint, types, import contract, tests
	@bash .ci/run

demo: ## the isolation experiment, short form (under 3 minutes; needs root)
	@tools/setup demo
	@.venv/bin/memsculpt bench isolation --quick $(ARGS)

setup: ## only the set-up for running: .venv, then use .venv/bin/memsculpt
	@tools/setup run

format: ## write the house's format into the files
	@tools/setup test
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

sizes: ## files and functions past the lengths at which to ask for the second subject
	@tools/setup run
	@.venv/bin/python tools/sizes.py

# --no-header, because the header would tell the command line and with it somebody's paths or addresses.
lock: ## pin the newest releases that are at least two weeks old
	@test -x $(UV) || python3 -m venv build/lock
	@build/lock/bin/python -m pip --quiet --disable-pip-version-check install uv==$(UV_VERSION)
	@before=$$(date -u -d '$(LOCK_DAYS) days ago' +%Y-%m-%d) && tools/lock $(UV) "$$before"

clean: ## remove what the build and the tests left; .venv too
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
