# Each target makes its own environment when needed: .venv by uv where there is uv, else by venv
# and pip. PYTHON chooses the interpreter (3.11 to 3.13).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/movie_reviews
CONFIG ?= configs/text_classification.py:movie_reviews,attention_pooling
WORKERS ?= 2
SUITE ?= cpu
PART ?= all
SELECT_all := accelerator
SELECT_fast := accelerator and not slow
# "2/5" is the second of five parts of the slow tests, which take equally long; all if empty.
# PYTEST_ADDOPTS="--store-durations --clean-durations" make test-slow measures them again.
SLICE ?=
SLICES = $(subst /, ,$(SLICE))
SPLIT = $(if $(SLICE),--group=$(firstword $(SLICES)) --splits=$(lastword $(SLICES)))
DURATIONS := --durations-path=tests/durations.json

# An environment of another interpreter is not taken for the one that was asked for.
ifneq ($(origin PYTHON),file)
ifneq ($(MAKECMDGOALS),clean)
ifneq ($(wildcard $(BIN)/python),)
ASKED := $(shell $(PYTHON) --version 2>&1)
PRESENT := $(shell $(BIN)/python --version 2>&1)
ifneq ($(ASKED),$(PRESENT))
$(error PYTHON=$(PYTHON) is $(ASKED), but $(VENV) has $(PRESENT); name another environment by \
  VENV=..., or remove this one by "make clean")
endif
endif
endif
endif

.PHONY: train test test-slow test-faults test-oracles test-accelerators test-trackers test-ray lint format docs notebooks bench tune results clean

train: $(VENV)/.run
	$(BIN)/python -m launch.train --config=$(CONFIG) --workdir=$(WORKDIR)

# Tests start many processes, which need not compile the modules again.
test test-slow test-faults test-oracles test-accelerators: export PYTHONDONTWRITEBYTECODE :=

# TESTS names files or folders; all if empty.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal $(TESTS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal --durations=20 $(DURATIONS) $(SPLIT) \
	  -m "slow and not oracle and not accelerator"

# Kills, damages and disturbs training; FAULTS_RECORD=results/faults.json writes the outcomes.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m faults tests/faults

test-oracles: $(VENV)/.oracles
	FULL_COMPILATION=1 $(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal -m oracle

# Compiles kernels and steps for GPUs and TPUs, which need not be present, in two environments.
# PART is "all" (half an hour), or "fast" (a few minutes).
test-accelerators: $(VENV)-cuda/.made $(VENV)-tpu/.made
	FULL_COMPILATION=1 $(VENV)-cuda/bin/python -m pytest -n $(WORKERS) --dist=worksteal \
	  -m "$(SELECT_$(PART))" tests/accelerators
	FULL_COMPILATION=1 $(VENV)-tpu/bin/python -m pytest -n $(WORKERS) --dist=worksteal \
	  -m "$(SELECT_$(PART))" tests/accelerators

# Local stores of MLflow and Weights & Biases.
test-trackers: $(VENV)-tracking/.made
	$(VENV)-tracking/bin/python -m pytest tests/launch/engine/test_trackers.py

# A local Ray cluster of two nodes that loses one of them.
test-ray: $(VENV)-ray/.made
	$(VENV)-ray/bin/python -m pytest -m slow tests/launch/runs/test_on_ray.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python
	$(BIN)/python -m attention.registry --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site: build/site/index.html. Warnings are errors; no link outside is fetched.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# Executes docs/notebooks and saves the outputs.
notebooks: $(VENV)/.dev
	$(BIN)/python -m tests.notebooks

# Up to the report, results go to benchmarks/results/, README.md and attention.png; the others print.
bench: $(VENV)/.oracles
	$(BIN)/python -m benchmarks.attention --suite=$(SUITE)
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.train_choices
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.pipelines
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.cache_layout

# What "auto" chooses a kernel by, on this machine.
tune: $(VENV)/.run
	$(BIN)/python -m benchmarks.tune

results: $(VENV)/.run
	$(BIN)/python -m launch.report --results=results --output=RESULTS.md --readme=README.md \
	  --pages=docs/applications --explanations=docs/EXPLAIN.md --faults=docs/RELIABILITY.md

clean:
	rm -rf $(VENV) $(VENV)-cuda $(VENV)-tpu $(VENV)-tracking $(VENV)-ray .jax_cache .pytest_cache .ruff_cache

# ---------------------------------------------------------------- environments

# torch goes first and with plain pip: it then takes the CPU build where the machine offers one.
define install
	@if [ ! -x $(BIN)/python ]; then \
	  if command -v uv >/dev/null 2>&1; then uv venv --quiet --python $(PYTHON) $(VENV); \
	  else $(PYTHON) -m venv $(VENV); fi; \
	fi
	@echo "installing $(1)"
	@if command -v uv >/dev/null 2>&1 && [ "$(2)" != pip ]; then \
	  uv pip install --quiet --python $(BIN)/python -r $(1) -c constraints.txt; \
	else \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1) -c constraints.txt; \
	fi
endef

$(VENV)/.run: requirements.txt constraints.txt
	$(call install,requirements.txt)
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(call install,requirements-dev.txt)
	@touch $@

# An environment that adds one requirements file to $(VENV), whose packages it finds by a .pth file.
$(VENV)-%/.made: $(VENV)/.dev requirements-%.txt
	@echo "installing requirements-$*.txt"
	@[ -x $(VENV)-$*/bin/python ] || $(BIN)/python -m venv $(VENV)-$*
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$($(VENV)-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	@$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-$*.txt -c constraints.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.run requirements-docs.txt
	$(call install,requirements-docs.txt)
	@touch $@

$(VENV)/.oracles: $(VENV)/.dev requirements-oracles.txt
	$(call install,requirements-oracles.txt,pip)
	@touch $@
