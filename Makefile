# Each target makes .venv and installs what it needs; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
# Processes that run tests, one file at a time each; 0 runs them all in one process.
WORKERS ?= 2
PYTEST = $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile
INSTALLED := .venv/.installed
INSTALLED_DEMO := .venv/.installed-demo
INSTALL = $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: test test-all lint demo help-pages streaming-plan docs figures clean

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/check_words.py

demo: $(INSTALLED_DEMO)
	$(BIN)/pixmix-demo --out demo

help-pages: $(INSTALLED)
	$(BIN)/python -m pipelines.cli.help_pages docs/commands.md

streaming-plan: $(INSTALLED)
	$(BIN)/python docs/streaming_simulator.py --page docs/streaming-plan.md

$(INSTALLED): pyproject.toml
	$(INSTALL) --editable '.[dev]'
	touch $@

$(INSTALLED_DEMO): pyproject.toml
	$(INSTALL) --editable '.[demo]'
	touch $@

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -n -b html docs build/docs

figures: $(INSTALLED)
	$(BIN)/pixmix-gen fractals --n 8 --out build/figures/overview/fractals
	$(BIN)/pixmix-gen featviz --n 4 --out build/figures/overview/featviz
	$(BIN)/pixmix-gen fractals --n 32 --out build/figures/fractals
	$(BIN)/pixmix-gen featviz --n 256 --out build/figures/featviz
	$(BIN)/python docs/figures.py build/figures docs

clean:
	rm -rf .venv demo build dist
