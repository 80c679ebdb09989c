# Everything happens in $(VENV), made on first use by a Python >= 3.11: the one given as PYTHON=..., else the first of
# these that is new enough (what `python3` means on this machine comes first).
VENV ?= .venv
CANDIDATES := python3 python3.13 python3.12 python3.11
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ARGS ?=
# Processes that share the tests, each file in one of them; 0 for none beside the one that is started.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Do what takes a while: its title, the command, and what it says in $(VENV)/making.log, shown where it fails. A dot every
# two seconds, from a process that ends with this shell, says that it is not stuck.
patiently = printf '%s ' "$(1)"; log=$(VENV)/making.log; mkdir -p $(VENV); \
	(while sleep 2 >/dev/null && kill -0 $$$$; do printf .; done) 2>/dev/null & dots=$$!; \
	$(2) >$$log 2>&1; status=$$?; kill $$dots; echo; \
	if [ $$status != 0 ]; then cat $$log; exit $$status; fi
# Run pip with the words given, whose title comes second.
install = @$(call patiently,installing into $(VENV): $(strip $(2)),$(PIP) install $(1))
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help quickstart test test-long test-processes test-torch test-in-torch test-lm-eval test-in-lm-eval lint bench \
	docs constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="..." adds arguments, PYTHON=... chooses the interpreter, VENV=... the environment'

quickstart: $(VENV)/.installed ## train a small language model on real text, in minutes
	$(BIN)/xlstm train quickstart $(ARGS)

# NPROC: simulated devices on few cores need more pool threads than cores, or their collectives wait for each other.
test: $(VENV)/.installed-dev ## run all tests (ARGS="-m 'not slow'" for the fast ones)
	NPROC=32 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not processes and not long' $(ARGS)

test-long: $(VENV)/.installed-dev ## the commands of the README, trainings and plans of minutes each
	NPROC=32 $(BIN)/python -m pytest -n $(WORKERS) -m long $(ARGS)

test-processes: $(VENV)/.installed-dev ## train in several processes, and kill them (minutes)
	NPROC=32 $(BIN)/python -m pytest -m processes tests/distributed $(ARGS)

test-torch: ## compare with PyTorch's transformers and xlstm, in .venv-torch (a large download)
	@$(MAKE) --no-print-directory VENV=.venv-torch test-in-torch

test-in-torch: $(VENV)/.installed-torch
	NPROC=32 $(BIN)/python -m pytest tests/torch $(ARGS)

test-lm-eval: ## tasks of the lm-evaluation-harness, in .venv-lm-eval (a large download)
	@$(MAKE) --no-print-directory VENV=.venv-lm-eval test-in-lm-eval

test-in-lm-eval: $(VENV)/.installed-lm-eval
	NPROC=32 $(BIN)/python -m pytest tests/lm_eval $(ARGS)

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(call patiently,mypy,$(BIN)/mypy)

bench: $(VENV)/.installed ## every benchmark, with its JSON in build/benchmarks
	@for file in benchmarks/[!_]*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; \
		$(BIN)/python $$file --out build/benchmarks/$$name.json $(ARGS) || exit 1; \
	done

docs: $(VENV)/.installed-docs ## the documentation, in build/docs
	@$(call patiently,making the documentation,$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs $(ARGS))
	@echo "open build/docs/index.html"

# `uv` resolves for all Pythons at once; what it writes says the platforms in every line, which pip does not need.
PLATFORMS := \(?sys_platform == 'darwin' or sys_platform == 'linux'\)?
constraints: ## bring constraints.txt up to date (needs uv; run the tests on two Pythons afterwards)
	@( echo '# Exact versions that the tests pass with, one set for each Python; made by `make constraints`.'; \
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra docs --extra lm-eval --no-annotate --no-header pyproject.toml \
		| sed -E "s/ (;|and) $(PLATFORMS)$$//" ) > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove the environment and what was built; runs/ and stores/ stay
	rm -rf $(VENV) .venv-torch .venv-lm-eval build dist docs/reference docs/commands docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache

$(VENV)/.installed: EXTRAS :=
$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed-docs: EXTRAS := [docs]
$(VENV)/.installed-lm-eval: EXTRAS := [dev,lm-eval]
INSTALLED := $(VENV)/.installed $(addprefix $(VENV)/.installed-,dev docs lm-eval)
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(call install, --constraint constraints.txt --editable '.$(EXTRAS)', the tested versions)
	@touch $@

# The PyTorch packages are only compared with, so ours have the say in the versions of what both need. What `xlstm` and
# `mlstm_kernels` list would bring training frameworks and GPU compilers along; this is what they import on a CPU.
$(VENV)/.installed-torch: pyproject.toml constraints.txt | $(BIN)/python
	$(call install, torch==2.13.0, PyTorch)
	$(call install, --no-deps mlstm_kernels==2.0.6 xlstm==2.0.6, the packages to compare with)
	$(call install, --constraint constraints.txt transformers==5.23.0 dacite einops omegaconf, and what they need)
	$(call install, --constraint constraints.txt --editable '.[dev]', this package)
	@touch $@

$(BIN)/python:
	@python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
		for one in $(CANDIDATES); do \
			if $$one -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then python=$$one; break; fi; \
		done; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "xlstm-jax needs Python 3.11 or newer, but none of $(CANDIDATES) is one; give yours as PYTHON=..." >&2; exit 1; \
	elif ! "$$python" -c '' >/dev/null 2>&1; then \
		echo "PYTHON is $$python, which does not run; it must be a Python 3.11 or newer" >&2; exit 1; \
	elif ! "$$python" -c '$(NEW_ENOUGH)'; then \
		echo "xlstm-jax needs Python 3.11 or newer, but $$python is $$("$$python" --version 2>&1)" >&2; exit 1; \
	elif ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
		echo "$$python lacks the venv module: install it (on Debian and Ubuntu: sudo apt install python3-venv)" >&2; exit 1; \
	fi; \
	$(call patiently,making $(VENV) with $$("$$python" --version),"$$python" -m venv $(VENV))
