# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find proto -name "*.proto")
MODEL ?=
RUNS ?= 1000
FUZZ_SECONDS ?= 60
ARGS ?=
URL ?= http://127.0.0.1:8000
LOAD_TOOLS ?= $(HOME)/.cache/kvstore/load-tools

.PHONY: help install system-packages demo serve load test quick chaos fuzz check format proto clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t'

install: $(VENV)/.installed ## create .venv and install the tested set of packages

$(VENV)/.installed: pyproject.toml constraints.txt tools/make_venv.sh
	@echo "==> Installing into $(VENV) (about 1.5 GB; a few minutes the first time)"
	@PYTHON=$(PYTHON) VENV=$(VENV) bash tools/make_venv.sh
	@touch $@

demo: install ## run the main job end to end on this machine; MODEL=path-or-hub-id serves that model
	@$(BIN)/kvstore demo $(if $(MODEL),--model "$(MODEL)") $(ARGS)

serve: install ## leave a cluster up until Ctrl-C; MODEL=path-or-hub-id serves that model
	@$(BIN)/kvstore serve $(if $(MODEL),--model "$(MODEL)") $(ARGS)

load: install ## drive the gateway at URL=... with aiperf and guidellm; MODEL=path-or-hub-id is what it serves
	@PYTHON=$(BIN)/python bash tools/load_generators.sh "$(LOAD_TOOLS)"
	@$(BIN)/python tools/load.py --tools "$(LOAD_TOOLS)" --url "$(URL)" --model "$(notdir $(MODEL))" --tokenizer "$(MODEL)" $(ARGS)

# Tests run side by side, on models so small that a second thread would only wait for the first.
test quick: export OMP_NUM_THREADS ?= 1

test: install system-packages ## all tests
	@echo "==> Running the tests"
	@$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

quick: install system-packages ## the tests that take seconds
	@$(BIN)/pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

system-packages:
	@bash tools/system_packages.sh

chaos: install ## kill writers, readers and nodes at random points, RUNS=1000 times
	@$(BIN)/python tools/chaos.py --runs $(RUNS)

fuzz: install ## fuzz everything that parses bytes from a socket or a file, FUZZ_SECONDS=60 each
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	@$(BIN)/python tools/fuzz.py --seconds $(FUZZ_SECONDS)

check: install ## format, lint, types, layers, generated code, docs
	@echo "==> Format and lint"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@echo "==> Types"
	@$(BIN)/mypy
	@echo "==> Layers"
	@$(BIN)/lint-imports --no-logo > .lint-imports.log || { cat .lint-imports.log; exit 1; }; rm -f .lint-imports.log
	@echo "==> Generated files are up to date"
	@VENV=$(VENV) bash tools/check_generated.sh
	@echo "==> Links in the docs"
	@$(BIN)/python tools/check_links.py
	@echo "==> All checks passed"

format: install ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: install ## generate code from proto/ and the table of options
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
	@$(BIN)/python -m cluster.cli.options_table docs/configuration.md

clean: ## remove what the targets above made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
