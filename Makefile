# potkit: `make reproduce` (set-up + all notebooks), `make test` (set-up + lint + tests + notebook check), `make test-quick`, `make lab`.
#
# The set-up goes into .venv and nowhere else. Each of its steps leaves a stamp file, so a second run starts at once, an
# interrupted one goes on where it stopped, and a changed pyproject.toml repeats what depends on it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
# of `make fuzz`, for each format of files and each kind of settings
MINUTES ?= 0
# how many times as many cases as in the tests `make coverage` tries
CASES ?= 5
# of `make kills`, for each command
COUNT ?= 20
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
EXACT := -c constraints.txt

# One thread a process: the tests and notebooks run $(WORKERS) processes side by side, and small tensors gain nothing from more.
CHECK := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

LINTED := potkit tests notebooks docs README.md
# The inner loop: whole rooms that need little training, and what holds the house together.
QUICK := -m "not slow and not generate" $(addprefix tests/,structures datasets objectives analysis \
    training/test_config.py training/test_checkpoints.py training/test_training.py training/test_evaluation.py \
    models/test_egnn.py models/test_painn.py experiments/test_statistics.py report/test_readme.py \
    test_architecture.py test_house.py)

.PHONY: help setup peers reproduce lint test test-quick coverage fuzz kills notebooks-text pages docs lab clean

help:
	@echo "make reproduce   set up, then execute all notebooks (profile quick)"
	@echo "make test        set up, then lint, run the tests and check the notebooks' stored numbers"
	@echo "make test-quick  the inner loop: the tests that need little training, under two minutes"
	@echo "make lint        format and rules of package, tests and notebooks; changes nothing"
	@echo "make notebooks-text  write the notebooks' text twins anew, in notebooks/text/"
	@echo "make pages       fill the tables of README, RESULTS and docs/ from data/results"
	@echo "make docs        build the documentation site, in docs/_build/html"
	@echo "make coverage    set up, then store what every interval covers (CASES=5: so many times the tests' cases)"
	@echo "make fuzz        set up, then spoil settings and files at random (MINUTES=10: each)"
	@echo "make kills       set up, then kill every long command at random moments (COUNT=20: each)"
	@echo "make lab         set up, then open JupyterLab on notebooks/"
	@echo "make peers       add the other implementations that some tests compare with (make test tries it once)"
	@echo "make clean       remove the set-up and caches; runs/ stays"

setup: $(VENV)/.stamp-package $(VENV)/.stamp-scatter

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || { echo "potkit needs Python 3.11 or newer, but there is no '$(PYTHON)'; name one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "potkit needs Python 3.11 or newer, found $$($(PYTHON) --version); name another: make PYTHON=python3.11"; exit 1; }
	@echo "set-up 1/4: virtual environment in $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first and alone: everything after it finds it there, and nothing can bring another build of it.
$(VENV)/.stamp-$(subst ==,-,$(TORCH)): | $(VENV)/.stamp-venv
	@echo "set-up 2/4: $(TORCH)"
	@$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.stamp-package: pyproject.toml constraints.txt $(VENV)/.stamp-$(subst ==,-,$(TORCH))
	@echo "set-up 3/4: potkit and what it needs (a few minutes)"
	@$(PIP) $(EXACT) -e ".[notebooks,generate,test,lint,cluster,docs,log]"
	@touch $@

# Compiled against the torch above, hence no build isolation.
$(VENV)/.stamp-scatter: $(VENV)/.stamp-$(subst ==,-,$(TORCH)) | $(VENV)/.stamp-package
	@echo "set-up 4/4: torch-scatter, compiled here (some minutes)"
	@if $(PIP) "setuptools>=77,<82" wheel ninja && $(PIP) --no-build-isolation torch-scatter >$(VENV)/torch-scatter.log 2>&1; then :; else \
	    echo "WARNING: torch-scatter could not be built (see $(VENV)/torch-scatter.log); potkit runs without it, torch-geometric's own scatter takes its place"; fi
	@touch $@

peers: setup
	@$(PIP) $(EXACT) -e ".[peers]"
	@touch $(VENV)/.stamp-peers

# For `make test`: one bounded try, because tests that compare with another implementation skip themselves where it is missing.
$(VENV)/.stamp-peers: | setup
	@echo "set-up, optional: other implementations to compare with (about a minute)"
	@$$(command -v timeout >/dev/null && echo timeout 300) \
	    $(PIP) $(EXACT) -e ".[peers]" >$(VENV)/peers.log 2>&1 \
	    || echo "note: not all of them could be installed (see $(VENV)/peers.log); tests that need one are skipped"
	@touch $@

# The same for the programs that `potkit export` writes for: two small packages and what they need.
$(VENV)/.stamp-engines: | setup
	@echo "set-up, optional: metatomic and torch-sim, which read exported networks (some seconds)"
	@$$(command -v timeout >/dev/null && echo timeout 300) \
	    $(PIP) $(EXACT) -e ".[metatomic,torch-sim]" >$(VENV)/engines.log 2>&1 \
	    || echo "note: not all could be installed ($(VENV)/engines.log); their tests are skipped"
	@touch $@

reproduce: setup
	@$(BIN)/potkit run --profile quick $(NOTEBOOKS)

# Looks only: `ruff format` and `ruff check --fix` change what can be changed by themselves.
lint: setup
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/ruff check $(LINTED)

notebooks-text: setup
	@$(BIN)/python -m potkit.notebooks.text

pages: setup
	@$(BIN)/python -m potkit.report.blocks \
	    README.md RESULTS.md docs/papers.md docs/scale.md docs/statistics.md docs/weights.md

# From the start each time, warnings are errors; nothing is fetched, notebooks are shown as stored.
docs: setup
	@$(BIN)/python -m sphinx -q -a -E -W --keep-going -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

test-quick: setup
	@$(CHECK) $(QUICK)

test: setup $(VENV)/.stamp-peers $(VENV)/.stamp-engines lint docs
	@$(CHECK)
	@if [ -n "$(NOTEBOOKS)" ]; then \
	    echo "notebooks: executing them in profile smoke and comparing the marked cells with what is stored"; \
	    POTKIT_PROFILE=smoke POTKIT_PICTURES=0 POTKIT_FIGURES='$(CURDIR)/runs/nbval/figures' \
	        $(CHECK) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout 600 -p no:cacheprovider $(NOTEBOOKS); \
	else echo "notebooks: none to check"; fi

coverage: setup
	@mkdir -p runs && rm -f runs/coverage.txt
	@POTKIT_COVERAGE=$(CASES) POTKIT_COVERAGE_NOTES='$(CURDIR)/runs/coverage.txt' $(CHECK) \
	    tests/experiments/test_coverage.py \
	    tests/experiments/test_calibration.py::test_reliability_covers \
	    tests/experiments/test_audit.py::test_intervals_hold_the_truth_as_often_as_they_say
	@PYTHONPATH=. $(BIN)/python tests/cover_notes.py runs/coverage.txt $(CASES)

fuzz: setup
	@POTKIT_FUZZ=50 POTKIT_FUZZ_MINUTES=$(MINUTES) $(CHECK) -rP tests/fuzz

kills: setup
	@POTKIT_KILLS=$(COUNT) $(CHECK) -rP tests/kills/test_kills.py
	@POTKIT_KILLS=$(COUNT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:xdist tests/kills/test_compile.py

lab: setup
	@$(BIN)/jupyter lab notebooks

clean:
	rm -rf $(VENV) docs/_build docs/notebooks docs/reference build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./runs -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 | xargs -0 rm -rf
	@echo "left alone: runs/ (trained models and executed notebooks)"
