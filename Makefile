PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= busybox
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)

.PHONY: help demo test check bench generate format clean packages-demo packages-test

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: packages-demo $(STAMP) ## install what is missing, then make an image and run a container from it
	$(BIN)/python tools/demo.py --image $(IMAGE)

test: packages-test $(STAMP) ## install what is missing, then run every test
	$(BIN)/pytest $(PYTEST_ARGS)

check: $(STAMP) ## format, lint, types, import contracts, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate.py --check

bench: packages-test $(STAMP) ## compare with Debian's containerd, interleaved; writes bench/RESULTS.md
	$(BIN)/python bench/run.py

generate: $(STAMP) ## regenerate src/kontti/api and src/kontti/wire/messages from proto/
	$(BIN)/python tools/generate.py

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

packages-demo:
	@tools/packages demo

packages-test:
	@tools/packages test

$(STAMP): pyproject.toml constraints.txt
	@tools/venv "$(PYTHON)" "$(VENV)"
	@touch $@

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
