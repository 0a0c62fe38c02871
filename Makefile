# Runs, checks and tests Parshall. Needs make and Python 3.11 or newer, nothing else: `make help` lists the targets.

PYTHONS := $(if $(PYTHON),$(PYTHON),python3.15 python3.14 python3.13 python3.12 python3.11 python3 python)
BIN := .venv/bin
LOCK := requirements/dev.txt

RESOLVE := .venv-lock/bin/uv pip compile pyproject.toml --extra model --universal --python-version 3.11 \
  --generate-hashes --no-annotate --no-header --quiet

# Makes the virtual environment $(1) unless it works already, with the newest Python that can.
define make_venv
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
  chosen=; bare=; \
  for python in $(PYTHONS); do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
    if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then chosen="$$python"; break; fi; \
    bare="$$python"; \
  done; \
  if [ -n "$$chosen" ]; then "$$chosen" -m venv --clear $(1) || exit 1; \
  elif [ -n "$$bare" ]; then echo "$$bare lacks venv or ensurepip; install them (Debian, Ubuntu:" \
    "apt install python3-venv) or name another Python: make PYTHON=…" >&2; exit 1; \
  else echo "Parshall needs Python 3.11 or newer and found none; install one or name it: make PYTHON=…" >&2; exit 1; \
  fi; \
fi
endef

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export PIP_USER = 0

.PHONY: help up test check soak bench lock clean environment
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' Makefile | while IFS='|' read -r target what; do \
	  printf '  %-12s %s\n' "$$target" "$$what"; done

up: environment ## start Parshall; arguments: make up ARGS="--demo"
	@exec $(BIN)/parshall up $(ARGS)

test: environment ## run the tests; some of them: make test ARGS="tests/unit -k credits"
	@$(BIN)/python -m pytest -m "not soak" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  $(ARGS)

check: environment ## lint, formatting, types, layers and the rules of CONTRIBUTING.md
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests/tidy

soak: environment ## run the long simulations, then the system tests with the services apart; with ARGS: those alone
	@$(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m pytest tests/system --topology split --timeout 3600 \
	  --numprocesses auto --maxprocesses 2 --dist loadfile)

bench: environment ## measure; about half an hour, on Linux
	@$(BIN)/python bench/streams.py && $(BIN)/python bench/ledger.py

lock: ## lock the dependencies of pyproject.toml; to take newer ones: make lock ARGS=--upgrade
	@$(call make_venv,.venv-lock); .venv-lock/bin/python -m pip install --quiet uv
	@$(RESOLVE) --group dev -o requirements/dev.txt $(ARGS)
	@$(RESOLVE) -c requirements/dev.txt -o requirements/run.txt $(ARGS)

clean: ## remove the environment and every cache
	@rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is ready when it was made here, of this lock and this pyproject.toml, and its Python still starts.
# The stamp is written last: whatever was interrupted is done again. Scripts name their folder: a moved one starts over.
environment:
	@set -e; wanted="$$(pwd; cksum $(LOCK) pyproject.toml)"; \
	if [ "$$wanted" = "$$(cat .venv/ready 2>/dev/null)" ] && $(BIN)/python -c '' 2>/dev/null; then exit 0; fi; \
	if [ -f .venv/ready ] && [ "$$(head -n 1 .venv/ready)" != "$$(pwd)" ]; then rm -rf .venv; fi; \
	$(call make_venv,.venv); \
	echo "Preparing the environment (about a minute, once)…"; \
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $(LOCK); \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	printf '%s\n' "$$wanted" > .venv/ready
