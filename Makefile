# Everything lives in .venv; `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROFILE ?=
PORT ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(INSTALLED) ## install, start the system and stay in the foreground (PROFILE=file.yaml PORT=N)
	@exec $(BIN)/glimprouter run $(PROFILE) $(if $(PORT),--port $(PORT)) --with-parent

test: lint ## install, check style and types, run the tests (ARGS="-k steps -x")
	@exec $(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew, however new it is, when another build of vLLM is asked for (ENGINE=cpu or cuda) than install.sh noted in it.
ifneq ($(filter-out $(shell cat $(INSTALLED) 2>/dev/null),$(ENGINE)),)
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml deployments/install.sh
	@sh deployments/install.sh $(VENV)
