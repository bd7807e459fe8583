# make train: set up, make the base policy once, post-train it.    make test: set up, check, test.
PYTHON ?= python3
BIN := .venv/bin
MODELS := models

.PHONY: setup train test test-slow check clean

setup: .venv/ready
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(MODELS)/tiny-qwen3: | .venv/ready
	$(BIN)/driftproof tiny-model $@
$(MODELS)/tiny-bytes: | .venv/ready
	$(BIN)/driftproof tiny-model $@ --tokenizer bytes

train: .venv/ready $(MODELS)/tiny-qwen3
	$(BIN)/driftproof train recipes/quickstart.toml

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest

test-slow: .venv/ready
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv models runs labs
