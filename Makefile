# Every target creates the environment it needs. The only tools expected are Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-fast lint types bench clean

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# From labelled addresses to a better model: SFT, preference pairs, five ways of tuning, scores, a report.
quickstart: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh quickstart.sh

# First what fills two cores by itself; then two at a time, module by module in their order.
test: $(READY)
	$(BIN)/python -m pytest -m distributed --durations=100 --durations-min=5
	$(BIN)/python -m pytest -m "not distributed" -n 2 --dist loadscope --no-loadscope-reorder --durations=50 --durations-min=5

# Without what starts several processes or takes more than a few seconds.
test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow and not distributed"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers cannot follow the editable install, so they read a copy laid out as the package is.
types: $(READY)
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	MYPYPATH=build/types $(BIN)/python -m mypy -p tokencredit

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info
