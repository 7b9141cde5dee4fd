# The project's verbs; CI runs the same ones. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-lake demo-crash test lint fmt scala campaign mutants bench study-optimizers study-batch study-exchange study-adaptive study-lars-qsgd peers docs clean
BIN := .venv/bin
PACKAGE := python/headrace

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 25

setup: ## tools, environment, kernels, jar, Spark's settings: what is missing is named; redone only when its inputs change
	@scripts/python scripts/setup.py

demo: setup ## the main job on generated data, end to end
	@$(BIN)/headrace demo

demo-lake: setup ## a crawl, a graph and ratings on generated data: what was found beside what was planted
	@$(BIN)/headrace demo-lake

demo-crash: setup ## the same killed and resumed: same table, same weights
	@$(BIN)/headrace demo-crash

test: setup ## all tests: the JVM's, then Python's
	scripts/sbt test
	$(BIN)/python -m pytest -m "not campaign" -n 2 --dist loadfile --no-loadscope-reorder

lint: setup ## ruff, mypy --strict, import contracts, scalafmt
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy --strict $(PACKAGE)
	PYTHONPATH=python $(BIN)/lint-imports --no-cache
	scripts/sbt scalafmtCheckAll scalafmtSbtCheck

fmt: setup ## format Python, notebooks, Scala
	$(BIN)/ruff check --no-cache --fix .
	$(BIN)/ruff format --no-cache .
	for notebook in notebooks/*.ipynb; do [ ! -f "$$notebook" ] || $(BIN)/nbstripout "$$notebook"; done
	scripts/sbt scalafmtAll scalafmtSbt

scala: setup ## compile and test the JVM side, build the jars
	scripts/sbt test assembly package deltaJars
	@$(BIN)/python scripts/spark_settings.py "$$($(BIN)/python -c 'import os, pyspark; print(os.path.dirname(pyspark.__file__))')"

campaign: setup ## the long tests: thousands of races, dozens of kills
	$(BIN)/python scripts/campaign_ingest.py --kills 20 --seed 7 --results docs/results/ingest_kills.jsonl
	$(BIN)/python -m pytest -m campaign --timeout 3600

mutants: setup ## break every optimizer rule in every place: each mutant must be caught (resumes; MUTANTS="--only kfac --minutes 30")
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python scripts/mutants.py $(MUTANTS)

peers: setup ## what benchmarks and their checks compare with, into the same environment
	.tools/bin/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements-bench.lock

bench: setup ## the main job timed by stage, into docs/results/
	@$(BIN)/python -m bench

study-optimizers: setup ## every optimizer on MNIST, generated Criteo, CIFAR-10: 2 hours a call at most, goes on where it was
	@$(BIN)/python -m bench.studies.optimizers $(STUDY)

study-batch: setup ## accuracy against batch for momentum, Adam, LARS, LAMB: 2 hours a call at most, goes on where it was
	@$(BIN)/python -m bench.studies.batch $(STUDY)

study-exchange: setup ## loss against bytes for codecs, feedback, strategies: 2 hours a call at most, goes on where it was
	@$(BIN)/python -m bench.studies.exchange $(STUDY)

study-adaptive: setup ## codecs chosen by layer against fixed ones at equal bytes: goes on where it was
	@$(BIN)/python -m bench.studies.adaptive $(STUDY)

study-lars-qsgd: setup ## LARS + QSGD against either alone: goes on where it was
	@$(BIN)/python -m bench.studies.lars_qsgd $(STUDY)

docs: setup ## check links inside README and docs, and that the pages written by verbs are up to date
	@$(BIN)/python scripts/check_links.py README.md docs
	@$(BIN)/headrace catalog docs --check true >/dev/null
	@$(BIN)/headrace optimizers --page docs/optimizers.md --check true >/dev/null
	@$(BIN)/headrace codecs --page docs/codecs.md --check true >/dev/null

clean: ## remove what builds and demos made (the environment stays: remove .venv and .tools yourself)
	rm -rf .build scala/target project/target project/project build dist demo demo-lake lake mlruns spark-warehouse .mypy_cache .ruff_cache .hypothesis
