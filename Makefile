VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-kafka test bench bench-stream bench-scaling bench-samples bench-verdict bench-frontier bench-gpu bench-watching bench-poison screenshots chaos soak fuzz audit check format clean

# One virtual environment serves the demo, the tests and the checks.
$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable ".[test]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m consumer.demo --out demo-output

demo-kafka: $(INSTALLED)
	$(BIN)/python -m consumer.demo --out demo-output --kafka

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(INSTALLED)
	$(BIN)/pytest

bench: $(INSTALLED)
	$(BIN)/python -m tests.bench.core --out bench-output
	$(BIN)/python -m tests.bench.stream short --out bench-output

# LOAD: short, sustained, backlog, visits or half; see tests/bench/load.py.
LOAD ?= sustained
WORKERS ?= 2
bench-stream: $(INSTALLED)
	$(BIN)/python -m tests.bench.stream $(LOAD) --workers $(WORKERS) --out bench-output

# An alert's cost in short and long runs, and with 1, 2 and 4 workers: half an hour.
bench-scaling: $(INSTALLED)
	$(BIN)/python -m tests.bench.scaling --out bench-output

# Networks of several sizes trained alike, their losses and speeds; ROWS: folder of a training set.
bench-frontier: $(INSTALLED)
	$(BIN)/python -m tests.bench.frontier $(ROWS) --out bench-output

# Where torch finds a GPU.
bench-gpu: $(INSTALLED)
	$(BIN)/python -m tests.bench.gpu --out bench-output

# What metrics, traces, a shadow and readers of the live page cost.
bench-watching: $(INSTALLED)
	$(BIN)/python -m tests.bench.watching --out bench-output

# Error of every published quantile against the number of samples, and the figure of it.
bench-samples: $(INSTALLED)
	$(BIN)/python -m tests.bench.sample_count --out bench-output

# Rank correlation, recall and cost of verdicts by the number of their samples.
bench-verdict: $(INSTALLED)
	$(BIN)/python -m tests.bench.verdict --out bench-output

# Pictures of the live page, to be looked at; needs chromium and chromedriver.
screenshots: $(INSTALLED)
	$(BIN)/python -m tests.screenshots screenshots

# Everything that may break, broken on purpose: about an hour; the table comes last.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos

# Throughput with one message in ten poison, as a ratio to that without, in one run.
bench-poison: $(INSTALLED)
	$(BIN)/python -m tests.bench.poison --workers $(WORKERS) --out bench-output

# A million alerts, few samples each: whether memory, files and logs stay as they are.
SOAK ?= 1000000
soak: $(INSTALLED)
	$(BIN)/python -m tests.soak --alerts $(SOAK) --out bench-output

# Inputs tried; what was learnt stays in .fuzz, so that the next run goes on from there.
RUNS ?= 200000
fuzz: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[fuzz]"
	$(BIN)/python -m tests.fuzz -runs=$(RUNS)

# Known vulnerabilities of everything that is installed, by the records of PyPI.
audit: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[audit]"
	$(BIN)/pip freeze --all --exclude-editable > $(VENV)/audit.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audit.txt

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) bench-output demo-output build dist .fuzz
