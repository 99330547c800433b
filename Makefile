PYTHON ?= python3
BIN = .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: demo test lint docs lock faults full null clean

# The versions of locks/, nothing that is not named there.
.venv/ready: requirements.txt pyproject.toml locks/dev.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement=locks/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable=.
	$(BIN)/python -m pip check || { echo "locks/ is older than pyproject.toml or requirements.txt: make lock" >&2; exit 1; }
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
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/mkdocs build --quiet --strict --site-dir=site
	@echo "pages: site/index.html"

# Versions and hashes of all that is installed: of the tools of this file, and of the three images of the Dockerfile, which build
# the package, too. What still fits stays; `rm locks/*` first, and all are the newest.
LOCK = echo 'setuptools>=77' | .venv/lock/bin/uv pip compile pyproject.toml - --quiet --universal --generate-hashes --custom-compile-command='make lock'
lock:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'
	mkdir -p locks
	$(LOCK) --python-version=3.11 --extra=dev --extra=docs --output-file=locks/dev.txt
	$(LOCK) --python-version=3.11 --extra=medical --extra=weights --constraint=locks/dev.txt --output-file=locks/cpu.txt
	$(LOCK) --python-version=3.12 --extra=medical --extra=weights --extra=cuda --constraint=locks/dev.txt --output-file=locks/cuda.txt
	$(LOCK) --python-version=3.12 --extra=medical --extra=weights --extra=tpu --constraint=locks/dev.txt --output-file=locks/tpu.txt

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
	rm -rf .venv .jax_cache .cache demo site
