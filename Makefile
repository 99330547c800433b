PYTHON ?= python3
BIN = .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: demo test lint docs faults full null clean

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	mkdir -p -m 700 .jax_cache
	touch $@

demo: .venv/ready
	rm -rf demo
	$(BIN)/python -m fingerprint_jax.data.phantom --task=subtask2 --output_dir=demo/images
	$(BIN)/python -m fingerprint_jax.pack --task=subtask2 --train_dir=demo/images/train --test_dir=demo/images/test --groups=demo/images/groups.csv --data_dir=demo/data
	$(BIN)/python -m fingerprint_jax.main --config=configs/quickstart.py --config.data_dir=demo/data --workdir=demo/run
	$(BIN)/python -m fingerprint_jax.evaluate --workdir=demo/run --split=heldout --report
	$(BIN)/python -m fingerprint_jax.evaluate --workdir=demo/run --split=test_generated --submission=demo/run.csv
	$(BIN)/python -m fingerprint_jax.evaluate --task=subtask2 --predictions=demo/run.csv --truth=demo/images/truth.csv --output=demo/score
	@echo "run: demo/run   predictions: demo/run/predictions   submission: demo/run.csv   score on the truth: demo/score/results.json   page: demo/run/report/index.html"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n auto --dist=loadfile --no-loadscope-reorder

# The pages as a site, in site/; a link that leads nowhere is an error.
docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/mkdocs build --quiet --strict --site-dir=site
	@echo "pages: site/index.html"

# Kills, signals, damages and foreign ground, many more than the suite has: an hour on two cores.
faults: .venv/ready
	FINGERPRINT_FAULTS=full $(BIN)/python -m pytest tests/faults tests/data/test_fuzz.py

# Every published size of a backbone through the real binaries.
full: .venv/ready
	$(BIN)/python -m tests.backbones.full_sizes

# How often the permutation tests are significant where nothing is there.
null: .venv/ready
	$(BIN)/python -m tests.null_simulations
	$(BIN)/python -m tests.audit.content_differences $(if $(FINGERPRINT_DATA),--radiographs=$(FINGERPRINT_DATA)/chest64/reference)

clean:
	rm -rf .venv .jax_cache demo site
