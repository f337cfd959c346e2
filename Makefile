# `make demo` and `make test` work from nothing but Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS := 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test fast clients lint format dist clean

demo: $(VENV)/.installed
	$(BIN)/gpt2kit lens --model bundled "Tom and Lily went to the park. Tom gave the ball to"
	$(BIN)/gpt2kit generate --model bundled -n 200 --temperature 0.7 --top-p 0.95 --seed 13 "Once upon a time"

test: lint
	$(PYTEST)

fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# Fetches foreign clients into .clients/; wants node, npm and chromium.
clients: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m clients

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# setuptools packs whatever lies in build/, stale files too: begin without it.
dist: $(VENV)/.installed-dev
	rm -rf build dist *.egg-info
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) .clients build dist *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed
