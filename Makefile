# Each target makes .venv when it is missing. torch goes first and alone: whatever resolves it by itself may bring gigabytes of CUDA.
# Images often set PYTHONDONTWRITEBYTECODE, with which each process would compile torch and transformers anew: 20 CPU-seconds a start.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
LOADED := torch, peft, transformers.models.llama.modeling_llama, openai, polars, scipy.stats, uvicorn, tunesmith.cli, tunesmith.api.app, tunesmith.flow.pipeline.run, tunesmith.models.local, tunesmith.train.loop
# One process a core, each file in one process; every process computes with one thread (tests/conftest.py).
PARALLEL ?= -n auto --dist loadfile
.PHONY: demo test test-fast check bench families templates conformance clients cases install clean

install: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "1 of 3: torch into .venv"
	@$(BIN)/python -m pip install --no-compile --disable-pip-version-check torch==2.13.0
	@echo "2 of 3: Tunesmith and its tools into .venv"
	@$(BIN)/python -m pip install --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@echo "3 of 3: compiling what every command loads (the other modules when they are first used)"
	@$(BIN)/python -c 'import $(LOADED)'
	@touch $@

demo: install
	@$(BIN)/tunesmith demo $(ARGS)

test: install
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: install
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

check: install
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install
	@$(BIN)/python -m benchmarks $(ARGS)

bench-%: install
	@$(BIN)/python -m benchmarks $*

# Published chat templates, from a source distribution on PyPI: what is trained, sent and read back; writes docs/templates.md.
templates: install
	@$(BIN)/python -m benchmarks.templates $(ARGS)

# Every family of models that transformers knows, at toy size; ARGS="--only qwen3,gpt_oss" tries some, --processes 2 two at a time.
families: install
	@$(BIN)/python -m benchmarks.families $(ARGS)

# openai-python's own API tests, from its source distribution, against our server.
conformance: install
	@$(BIN)/python -m benchmarks.conformance $(ARGS)

# Clients of the API, each in an environment of its own, against the real server with a small model.
clients: install
	@$(BIN)/python -m benchmarks.clients $(ARGS)

# Small inputs of the kinds that real files and clients break software with; ARGS=--folder PATH tries those of a folder too.
cases: install
	@$(BIN)/python -m benchmarks.cases $(ARGS)

clean:
	rm -rf .venv .peers
