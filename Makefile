# Every command of the project. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help demo test check format lab lab-checkpoint lab-recordings bench-ingest bench-alp bench-kernel bench-collector harm test-lowest test-adapters generated screenshots clean

VENV := .venv
BIN := $(VENV)/bin
export TAILWATCH_VENV := $(VENV)

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## replay recorded runs into a live service on http://127.0.0.1:8321
	@scripts/bootstrap.sh service
	@exec $(BIN)/tailwatch demo

test: ## everything from nothing: lint, format, types, import contracts, all tests, coverage floor
	@scripts/bootstrap.sh dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

QUICK := tests/contracts tests/dashboards tests/service/statistics tests/collectors/test_batch.py \
	tests/collectors/test_collector.py tests/service/test_errors.py tests/service/test_settings.py

check: ## the quick part of `make test`, in under a minute: lint, types, contracts, the pure tests
	@scripts/bootstrap.sh dev
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports | tail -n 3
	@$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow and not browser" $(QUICK)

format: ## format and fix what can be fixed
	@scripts/bootstrap.sh dev
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

lab: ## train a tiny policy live into a running service (see `python -m lab.train --help`)
	@scripts/bootstrap.sh dev
	$(BIN)/python -m lab.train --live

lab-checkpoint: ## make the SFT checkpoint the lab starts from
	@scripts/bootstrap.sh dev
	$(BIN)/python -m lab.sft --out lab/checkpoints/sft.pt

lab-recordings: ## make the recorded runs in lab/recordings/
	@scripts/bootstrap.sh dev
	$(BIN)/python -m lab.record_all

bench-ingest: ## tokens/s through HTTP, as a ratio to the same service fed JSON -> bench/results.json
	@scripts/bootstrap.sh dev
	$(BIN)/python -m bench.ingest

bench-alp: ## a training step with ALP, as a ratio to the same model without -> bench/results.json
	@scripts/bootstrap.sh dev
	$(BIN)/python -m bench.alp

bench-kernel: ## ns/token of the statistics, against the memory floor, numpy, polars, torch and verl's formulas
	@scripts/bootstrap.sh dev
	$(BIN)/python -m bench.kernel

bench-collector: ## what the collector costs the loop, against memcpy and against other loggers -> bench/results.json
	@scripts/bootstrap.sh dev
	$(BIN)/python -m bench.collector

harm: ## what each kind of harm does to a training -> docs/harm.md
	@scripts/bootstrap.sh dev
	$(BIN)/python scripts/harm_report.py

test-lowest: ## the SDK with the lowest versions it declares
	scripts/lowest_versions.sh

test-adapters: ## the adapters against TRL (oldest, newest) and verl themselves, each in an environment of its own
	@scripts/test_adapters.sh

generated: ## write what comes from the registry and the rules: docs/metrics.md, Grafana, Prometheus, runbooks
	@scripts/bootstrap.sh dev
	$(BIN)/python scripts/metrics_page.py
	$(BIN)/python scripts/generate_grafana.py
	$(BIN)/python scripts/generate_rules.py

screenshots: ## shoot the pages of a demo that is running, into docs/pictures/, as high as the README shows them
	@scripts/bootstrap.sh dev
	$(BIN)/python scripts/screenshots.py http://127.0.0.1:8321 docs/pictures --height 1160

clean: ## remove the virtual environment, caches and the demo's data
	rm -rf $(VENV) .tailwatch-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
