# Everything a person runs here. Each target sets up what it needs; set-up takes a moment when there is nothing to do.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
# Child processes (Ray's workers, a job's bare `python`, ninja) must find the environment first.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Side by side, a file at a time; those on real engines need the machine to themselves.
UNIT_TESTS := $(PYTHON) -m pytest -n auto --maxprocesses 8 --dist loadfile --ignore tests/integration

.PHONY: help setup demo cluster-demo serve test test-full check audit bench base reproduce gates evidence clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup:  ## install everything in .venv, for the GPU if there is one, else for the CPU
	@scripts/setup.sh

demo: setup  ## the whole of RB-FT on the miniature: rationales, two stages, evaluation, report
	$(PYTHON) -m miniature.demo

cluster-demo: setup  ## the demo submitted to a head and two workers of this machine, two of which are killed meanwhile
	$(PYTHON) -m miniature.cluster_demo

serve: setup  ## the endpoint on the demo's model
	$(PYTHON) -m serve --config configs/miniature.yaml

test: setup  ## unit tests, then integration tests on real engines
	$(UNIT_TESTS)
	$(PYTHON) -m pytest tests/integration

test-full: setup  ## also the slow ones: kill matrices, every recipe
	$(UNIT_TESTS) -m "slow or not slow" --hypothesis-profile explore
	$(PYTHON) -m pytest -m "slow or not slow" tests/integration

check: setup  ## lint, format, types, import direction, known vulnerabilities
	ruff check .
	ruff format --check .
	mypy
	$(PYTHON) -m pytest -q tests/test_imports.py
	@$(PYTHON) scripts/audit.py || { [ $$? -eq 3 ] && echo "check: passed, but THE AUDIT WAS NOT DONE (above)"; }

audit: setup  ## known vulnerabilities of the pinned versions; build/sbom.json lists what is installed
	$(PYTHON) scripts/audit.py

bench: setup  ## measure; results go to benchmarks/results/
	$(PYTHON) -m benchmarks

base: setup  ## train the miniature's base model again (about an hour on two cores; goes on where it stopped)
	$(PYTHON) -m miniature.base

PROTOCOL ?= evidence-1

reproduce: setup  ## the paper's five tables and its Figure 2 on the miniature, ours beside the authors'
	$(PYTHON) -m miniature.reproduce

gates: setup  ## check on development worlds what the experiment needs, and try the learning rates (half an hour on two cores)
	$(PYTHON) -m miniature.gates --protocol $(PROTOCOL)

evidence: setup  ## does RB-FT beat Direct-SFT? the experiment on fresh worlds (about an hour on two cores; goes on where it stopped)
	$(PYTHON) -m miniature.evidence --protocol $(PROTOCOL)

clean:  ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./runs -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
