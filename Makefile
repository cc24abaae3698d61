# Every target sets up what it needs in .venv, from a fresh checkout and in any order.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# "run" needs the runtime only, "test" its own packages on top
RUNTIME := $(VENV)/.installed
TESTS := $(VENV)/.tests
# each released version that today's code has to work with, in an environment of its own
ARCHIVES := $(wildcard tests/transfer/released/*/twisted-connpool-*.tar.xz)
RELEASED := $(patsubst twisted-connpool-%.tar.xz,$(VENV)/released/%/.installed,$(notdir $(ARCHIVES)))

.PHONY: run s3-demo test released lint docs dist clean

$(RUNTIME): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools
	$(PIP) -e .
	touch $@

$(TESTS): $(RUNTIME)
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/released/%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check tests/transfer/released/$*/twisted-connpool-$*.tar.xz
	touch $@

run: $(RUNTIME)
	$(BIN)/twistd -n --pidfile= filerecv $(if $(filter 0,$(shell id -u)),--allow-root)

# S3 engines, whose programs come in wheels: for the demo, and for tests of the store
$(VENV)/engines/.installed: examples/s3/engines.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	touch $@

# an engine, two receivers and HAProxy; a file is sent while one receiver is killed
s3-demo: $(RUNTIME) $(VENV)/engines/.installed
	$(PIP) -e '.[s3]'
	CONNPOOL_ENGINES=$(VENV)/engines/bin $(BIN)/python -m examples.s3.demo

# with compiled files, whatever the machine's setting: each of some hundred processes reads them
test: $(TESTS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

released: $(TESTS) $(RELEASED)

lint: $(TESTS)
	$(PIP) -e '.[test,lint]'
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(RUNTIME)
	$(PIP) -e '.[docs]'
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

# both archives, the wheel built from the other one, and the changes of the next release
dist: $(RUNTIME)
	$(PIP) -e '.[release]'
	rm -rf build dist
	$(BIN)/python -m build >/dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/towncrier build --draft

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info
