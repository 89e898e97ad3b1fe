# Two commands do everything on a fresh machine: `make run` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Of `make chaos`: how many kills, and what chooses the moments (empty: a new one, which is printed).
ROUNDS ?= 300
SEED ?=

.PHONY: help setup setup-test run demo test lint bench chaos docs lock format clean

help: ## what can be done here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## everything that running needs, into .venv (the command is .venv/bin/privyseal)

$(STAMP): deploy/setup.sh requirements.lock pyproject.toml
	PYTHON="$(PYTHON)" bash deploy/setup.sh run
	@touch $@

setup-test: $(STAMP) ## what the tests and linters need besides
	PYTHON="$(PYTHON)" bash deploy/setup.sh test

run: $(STAMP) ## serve a home (PRIVYSEAL_HOME, else ~/.privyseal), made when there is none
	@exec bash deploy/run.sh

demo: $(STAMP) ## the whole story unattended: init, serve, issue, mutual TLS, renew, revoke, audit
	PYTHON="$(PYTHON)" bash deploy/setup.sh demo
	@exec $(BIN)/python deploy/demo.py

lint: setup-test ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=ca:acme $(BIN)/lint-imports

format: setup-test ## write the code in its one form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup-test ## every test, real clients and servers included
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

bench: setup-test ## what a certificate, an OCSP answer and a CRL cost, how soon a revocation is seen, how even renewals are, how long a survey takes
	$(BIN)/python tests/bench/orders.py
	$(BIN)/python tests/bench/status.py
	$(BIN)/python tests/bench/crls.py
	$(BIN)/python tests/bench/renewals.py
	$(BIN)/python tests/bench/fleet.py

chaos: setup-test ## kill and break a real service under load, hundreds of times, and count the cost (ROUNDS, SEED)
	PYTHONPATH=tests $(BIN)/python -m chaos --rounds "$(ROUNDS)" --seed "$(SEED)"

docs: setup ## write docs/configuration.md anew from the settings classes
	$(BIN)/privyseal config docs >docs/configuration.md

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

lock: setup ## resolve the dependencies anew into the lock files
	bash deploy/lock.sh
