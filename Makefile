# Needs only make and Python 3.11 or newer; everything else goes into .venv.
.DEFAULT_GOAL := help
PY := .venv/bin/python
READY := .venv/.ready
BUCKET := s3://crescendo

.PHONY: help setup demo demo-scratch demo-data up down demo-s3 test soak chaos test-fast test-gpu lint format ui lock clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## Make .venv from requirements-dev.lock (does nothing when it is up to date)

$(READY): requirements-dev.lock .ci/setup
	@sh .ci/setup
	@touch $@

demo: demo-data ## Prepare real photographs, fine-tune ImageNet's weights on two local workers, print the table
	@$(PY) -m jobs.train demo
	@tar -xOf data/elpv/val/val-000000.tar 00000000-images_cell1480_png.jpg > data/cell.jpg
	@echo
	@echo "Next: see its worst mistakes (data/demo-report/report.html), ask it about one cell, open the run in MLflow"
	@echo
	@echo "    $(PY) -m jobs.evaluate demo --data data/elpv/val --report data/demo-report"
	@echo "    $(PY) -m jobs.predict demo data/cell.jpg"
	@echo "    make ui"

demo-scratch: demo-data ## The same photographs from scratch, with a smaller model, for three times as many epochs
	@$(PY) -m jobs.train demo_scratch

demo-data: setup
	@$(PY) -m jobs.prepare elpv --out data/elpv

up: setup ## Start the local stack: S3 server, MLflow server, Ray head with dashboard, all on loopback
	@$(PY) -m jobs.stack up

down: setup ## Stop the local stack (its data stays in .stack/)
	@$(PY) -m jobs.stack down

demo-s3: up ## The demo on the local stack: shards and checkpoints in S3, a submitted Ray job, MLflow server
	@$(PY) -m jobs.stack run $(PY) -m jobs.prepare elpv --out $(BUCKET)/elpv
	@$(PY) -m jobs.stack run $(PY) -m jobs.submit demo --name demo-s3 --data.train $(BUCKET)/elpv/train \
		--data.val $(BUCKET)/elpv/val --storage $(BUCKET)/runs $(ARGS)

test: setup ## Run the tests but the long ones (`make soak`)
	$(PY) -m pytest -m "not soak" -n 2 --no-loadscope-reorder --durations=15

soak: setup ## Run the long tests: chaos, node loss, launchers, fuzzing
	$(PY) -m pytest -m soak -n 2 --no-loadscope-reorder --durations=15

chaos: setup ## Disturb runs for two hours in all ways (other options: make chaos ARGS="--minutes 30")
	$(PY) -m tests.chaos --minutes 120 --kills 11 --steps-a-kill 30 $(ARGS)

test-fast: setup ## Run the tests without those marked slow
	$(PY) -m pytest -m "not slow and not soak" -n 2 --durations=10

test-gpu: setup ## Run the tests that need a GPU, on the first one (all are skipped without one)
	$(PY) -m pytest -m gpu -n 0 --durations=10

lint: setup ## Check format, lint rules, types and the layer rule
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: setup ## Format the code and apply the safe fixes
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

ui: setup ## Open the MLflow UI over the local runs
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow ui --workers 1 --backend-store-uri sqlite:///runs/mlflow.db

COMPILE := uv pip compile --quiet --universal --no-emit-index-url --no-header --no-annotate $(if $(UPGRADE),--upgrade)

lock: ## Make both lock files again from pyproject.toml (needs uv; UPGRADE=1 for the newest versions)
	$(COMPILE) --all-extras --group dev pyproject.toml -o requirements-dev.lock
	$(COMPILE) --extra export --extra lite0 --extra server --extra tiff --extra timm --constraints requirements-dev.lock pyproject.toml \
		-o requirements.lock

clean: ## Remove the caches of the tools (keeps .venv, data and runs)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
