# Everything runs in .venv, made on first use from the constraints.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
# One thread per worker: BLAS threads of several workers on the same cores slow each other down.
export OMP_NUM_THREADS ?= 1

BASE := $(VENV)/.installed-base
LINT := $(VENV)/.installed-lint
DOCS := $(VENV)/.installed-docs
PEERS := $(VENV)/.installed-peers

.PHONY: help setup demo test test-slow test-peers lint types docs docs-run samplers examples figures \
	bench mutants mutants-random kill evidence coverage browser speed gate few-steps flow-map \
	flow-map-tables patches cifar throughput gpu energies families workers fuzz wheel train clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
		|| grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "scoregen needs Python >= 3.11, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)." >&2; \
		echo "Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The stamps depend on what decides the installation, so a second run installs nothing.
$(BASE): $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(LINT): $(BASE)
	$(PIP) install --quiet -c constraints.txt -e '.[lint]'
	@touch $@

$(DOCS): $(BASE)
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# azula and k-diffusion require torchvision, which would replace the pinned torch. Neither needs it
# for the parts compared with, so they come without their dependencies.
$(PEERS): $(BASE)
	$(PIP) install --quiet -c constraints.txt -e '.[peers]'
	$(PIP) install --quiet --no-deps azula==0.11.1 k-diffusion==0.1.1.post1 \
		denoising-diffusion-pytorch==2.3.4 smalldiffusion==0.5.0
	@touch $@

setup: $(BASE)  ## create .venv and install

demo: $(BASE)  ## compare samplers on real digits; results under runs/demo/
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python benchmarks/samplers/demo.py

test: $(BASE)  ## the default suite, doctests included
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(BASE)  ## the longer checks
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

test-peers: $(PEERS)  ## parity with other libraries
	$(BIN)/python -m pytest -n $(WORKERS) -m peers

lint: $(LINT)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(LINT)  ## mypy, strict
	$(BIN)/mypy

docs: $(DOCS)  ## HTML under docs/_build/html, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

docs-run: $(DOCS)  ## the same, after every example was run and its output and picture written
	$(BIN)/python benchmarks/figures/pages.py --write
	$(MAKE) docs

samplers: $(BASE)  ## measure every solver again and write docs/reference/samplers.md
	$(BIN)/python benchmarks/samplers/samplers_page.py

examples: $(BASE)  ## run the worked examples again
	for f in benchmarks/examples/*.py; do $(BIN)/python $$f || exit 1; done

figures: $(BASE)  ## the tables and plots of the likelihood and guidance pages
	$(BIN)/python benchmarks/figures/accuracy_plots.py
	$(BIN)/python benchmarks/figures/bound_limit.py
	$(BIN)/python benchmarks/figures/guidance_digits.py
	$(BIN)/python benchmarks/figures/inverse_problems.py --out docs/_generated/inverse_problems.txt
	$(BIN)/python benchmarks/figures/digits_likelihood.py --out docs/_generated/digits_likelihood.txt

bench: $(PEERS)  ## overhead and accuracy beside other libraries
	$(BIN)/python benchmarks/samplers/overhead.py
	$(BIN)/python benchmarks/samplers/accuracy.py

mutants: $(BASE)  ## break the code on purpose and see that the suite notices
	$(BIN)/python benchmarks/checks/mutants.py

SEED ?= 1
COUNT ?= 20
mutants-random: $(BASE)  ## the same with fresh slips: SEED=1 COUNT=20
	$(BIN)/python benchmarks/checks/mutants.py --random $(SEED) --count $(COUNT)

kill: $(BASE)  ## kill trainings at random moments and compare what is left
	$(BIN)/python benchmarks/training/kill_training.py --rounds 20

evidence: $(BASE)  ## coverage of the intervals of log Z
	$(BIN)/python benchmarks/figures/evidence_coverage.py

coverage: $(BASE)  ## coverage of the intervals of comparisons
	$(BIN)/python benchmarks/samplers/interval_coverage.py

browser:  ## the browser that the tests of reports use (Debian)
	apt-get update && apt-get install -y chromium

speed: $(BASE)  ## noise, densities and import beside torch's own, default noise beside k-diffusion's
	$(BIN)/python benchmarks/samplers/speed.py

gate: $(BASE)  ## train the two small networks that judge the samplers
	$(BIN)/python benchmarks/training/train_gate.py

MINUTES ?= 60
patches: $(BASE)  ## train a U-Net on patches of photographs, goes on when started again: MINUTES=60
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python benchmarks/training/train_patches.py --minutes $(MINUTES)

cifar: $(BASE)  ## the same on CIFAR-10: FOLDER=cifar-10-batches-py MINUTES=60
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python benchmarks/training/train_patches.py --cifar $(FOLDER) \
		--minutes $(MINUTES) --out runs/cifar

throughput: $(BASE)  ## steps a second of fit beside a bare loop
	$(BIN)/python benchmarks/training/throughput.py

gpu: $(BASE)  ## sampling on a GPU beside the CPU
	$(BIN)/python benchmarks/samplers/gpu.py

flow-map: $(BASE)  ## distil the bundled flow map of the digits, and measure it
	$(BIN)/python benchmarks/training/train_flow_map.py

flow-map-tables: $(BASE)  ## objectives of flow maps at equal budgets, and maps of the plane
	$(BIN)/python benchmarks/training/flow_map_objectives.py
	$(BIN)/python benchmarks/training/flow_map_2d.py

energies: $(BASE)  ## the tables of the page of energies
	$(BIN)/python benchmarks/figures/posteriors.py --out docs/_generated/posteriors.txt
	$(BIN)/python benchmarks/figures/composed_laws.py --out docs/_generated/composed_laws.txt
	$(BIN)/python benchmarks/figures/energy_training.py --out docs/_generated/energy_training.txt
	$(BIN)/python benchmarks/figures/nuts_efficiency.py --out docs/_generated/nuts_efficiency.txt

families: $(BASE)  ## train and compare the other families of models
	$(BIN)/python benchmarks/training/families.py

workers: $(BASE)  ## a study on one and on two workers
	$(BIN)/python benchmarks/samplers/workers.py

few-steps: $(BASE)  ## the page of few evaluations, measured again
	$(BIN)/python benchmarks/samplers/few_steps.py --best-of-96 --tune all --page

fuzz: $(BASE)  ## every public callable with bad arguments
	$(BIN)/python benchmarks/checks/fuzz.py

wheel:  ## build the wheel and try it in an empty environment
	PYTHON=$(PYTHON) .ci/wheel

train: $(BASE)  ## train the bundled digits network again
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python benchmarks/training/train_digits.py

clean:  ## remove caches and built pages; keeps .venv and runs/
	rm -rf docs/_build docs/reference/api build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
