# Everything from a fresh clone: the set-up needs make and a Python of 3.11 to 3.14, and nothing else.

SHELL := /bin/bash
BIN := .venv/bin
PYTEST_ARGS ?=
LOCK_ARGS ?=
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" $(LOCK_ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check range lock clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.* ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16
	@echo "Variables: PYTHON=python3.13 (which Python), CUDA=1 or 0 (CuPy; default: where there is an NVIDIA GPU),"
	@echo "           PYTEST_ARGS='-k attention' (for test and range), LOCK_ARGS=--upgrade (for lock)"

setup: ## Make .venv as requirements.lock says; does nothing when it is up to date
	@PYTHON='$(PYTHON)' CUDA='$(CUDA)' .ci/setup

demo: setup ## Sweep on bundled data, promote the best trial, evaluate it
	@$(BIN)/statten demo

# All three always run, so that one look shows everything; pytest comes last and has the last line. Two processes share the files,
# for those that start clusters mostly wait. Threads that wait for work do so without using a core, which another process has work for.
test: setup ## Lint, types and tests
	@failed=; \
	$(BIN)/ruff check . || failed="lint"; \
	$(BIN)/ruff format --check . || failed="$${failed:+$$failed, }format"; \
	$(BIN)/mypy || failed="$${failed:+$$failed, }types"; \
	[ -z "$$failed" ] || echo "FAILED before the tests, see above: $$failed"; \
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) && [ -z "$$failed" ]

check: test ## The same as test

range: setup ## Run the tests with the oldest and the newest torch that pyproject.toml allows, in environments of their own
	@.ci/torch-range $(PYTEST_ARGS)

lock: setup ## Choose versions anew from pyproject.toml's ranges; those in use stay unless LOCK_ARGS=--upgrade
	@$(UV_COMPILE) --extra dev -o requirements.lock pyproject.toml
	@sed -n 's/^cuda = \["\(.*\)"\]$$/\1/p' pyproject.toml | $(UV_COMPILE) --no-deps -o requirements-cuda.lock -

clean: ## Remove .venv and everything built; runs stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
