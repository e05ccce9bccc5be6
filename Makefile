# make run   installs devrt into .venv and runs its main job: doctor, a quick bench, a small language model
# make test  installs the test extras too and runs linters, types and tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Further witnesses for the tests, e.g. WITNESSES="torch==2.13.0 transformers"; tests skip visibly without them.
WITNESSES ?=
# Processes that run tests; whole files go to one of them.
WORKERS ?= 2

.PHONY: run test lint clean

run: $(VENV)/.run
	@$(BIN)/devrt doctor || true
	@echo
	@$(BIN)/devrt bench --quick
	@echo
	@$(BIN)/python examples/llama.py

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@for witness in $(WITNESSES); do $(BIN)/pip install --quiet --disable-pip-version-check "$$witness" \
	  || echo "witness not installed: $$witness; its tests will skip"; done
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
