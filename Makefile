# Two commands matter: `make lab` opens the first notebook, `make test` runs every test. Both set up .venv by themselves.
SHELL := bash
PY := .venv/bin/python
NOTEBOOK := notebooks/00_first_light.ipynb
ARGS :=
export PYTHON TORCH HASHES

.PHONY: help lab test test-all lint format bundles check-bundles benchmarks gpu outputs pins clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

lab: .venv/.lab ## set up and open JupyterLab on the first notebook (ARGS="--port=9000 --ip=0.0.0.0")
	@flags=""; \
	if [ "$$(id -u)" = 0 ]; then flags="--allow-root"; fi; \
	if [ "$$(uname -s)" = Linux ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY$$BROWSER" ]; then \
		flags="$$flags --no-browser"; echo "No display here: open the URL below in a browser."; \
	fi; \
	export JUPYTER_CONFIG_PATH=.ci/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}; \
	exec $(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(NOTEBOOK) $$flags $(ARGS)

test: .venv/.dev ## lint, format, types and all tests, browser tests included (ARGS="-k vocabulary")
	@.ci/test $(ARGS)

test-all: .venv/.dev ## the same with the tests marked slow, an hour: notebooks without a browser, trainings at full length
	@SLOW=1 .ci/test --ignore=tests/benchmarks $(ARGS)

lint: .venv/.dev ## lint, format and types only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: .venv/.dev ## put the code and the notebooks in the house's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	if [ -d widgets/js/node_modules ]; then npm --prefix widgets/js run --silent format; fi

bundles: .venv/.dev ## build the widgets' JavaScript into widgets/chameleon_widgets/static (needs Node)
	$(PY) widgets/js/messages.py
	.ci/bundles

check-bundles: ## JavaScript: do the bundles match their sources? types, format, lint, tests
	@.ci/bundles check

benchmarks: .venv/.dev ## print speed and the share of memory bandwidth, beside transformers
	HF_HUB_OFFLINE=1 $(PY) -m pytest tests/benchmarks -s -m "slow or not slow" $(ARGS)

gpu: ## all that needs a GPU, in nine minutes: tests, speed, memory, parity (docs/gpu.md; ARGS="--parts training,decoding")
	@$(firstword $(wildcard $(PY)) python3) tests/benchmarks/gpu $(ARGS)

outputs: .venv/.dev ## run the notebooks whose cells were changed, whole, and keep their outputs, made light (minutes; ARGS=notebooks/03*)
	HF_HUB_OFFLINE=1 $(PY) .ci/outputs $(ARGS)

pins: ## write the versions now in .venv to constraints.txt, and their files' hashes to requirements.lock (needs uv)
	sed '/^#/!d' constraints.txt > .venv/pins
	$(PY) -m pip freeze --all --exclude-editable --exclude pip --exclude wheel | sed 's/+cpu$$//' | LC_ALL=C sort -f >> .venv/pins
	mv .venv/pins constraints.txt
	sed '/^#/!d' requirements.lock > .venv/lock
	uv pip compile constraints.txt --no-deps --generate-hashes --universal --no-header --no-annotate -q >> .venv/lock
	mv .venv/lock requirements.lock

clean: ## remove .venv, caches and build folders (never runs/ or data/)
	rm -rf .venv build dist .pytest_cache .ruff_cache .screenshots widgets/js/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: setting up again only when what it depends on has changed.
.venv/.lab: pyproject.toml constraints.txt .ci/setup
	@.ci/setup lab
	@touch $@

.venv/.dev: pyproject.toml constraints.txt .ci/setup
	@.ci/setup dev
	@touch .venv/.lab $@
