PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test lint sweep quality bench fuzz torture

demo: .venv/demo-installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: .venv/dev-installed
	$(BIN)/python -m pytest -n 2

sweep: .venv/dev-installed
	$(BIN)/python -m tests.sweep --write docs/architectures.md

fuzz: .venv/dev-installed
	$(BIN)/python -m tests.fuzz --minutes 10

quality: .venv/dev-installed
	$(BIN)/python -m benchmarks.quality --write docs/quality.md

bench: .venv/dev-installed
	$(BIN)/python -m benchmarks.speed --write docs/speed.md

torture: .venv/dev-installed
	$(BIN)/python -m tests.torture --minutes 10

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/%-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable ".[$*]"
	touch $@
