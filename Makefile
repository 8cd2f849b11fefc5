# make quickstart and make test need only Python 3.11 or newer with pip, and make; either may come first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := edgeclf tests tools
JOBS   ?= 2

.PHONY: help quickstart test check format lock wheel emulated-pi clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make quickstart   set up $(VENV) and do the whole job on scikit-learn's handwritten digits"
	@echo "make test         set up $(VENV) with the development tools and run every test, JOBS=2 files at a time"
	@echo "make check        ruff format, ruff and mypy, changing nothing"
	@echo "make format       let ruff rewrite what it can"
	@echo "make lock         write locks/*.lock from what is installed; UPGRADE=1 installs the newest allowed versions first"
	@echo "make wheel        build dist/edgeclf-*.whl"
	@echo "make emulated-pi  build an emulated Raspberry Pi 4 (Linux, qemu, mmdebstrap) and deploy to it"
	@echo "make clean        remove build output; keeps $(VENV) and runs/"

quickstart: $(VENV)/.installed-train
	$(BIN)/edgeclf quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not alone" --durations=15
	$(BIN)/python -m pytest -m alone --durations=5

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lock: $(VENV)/.installed-dev
ifdef UPGRADE
	$(PIP) install --quiet --upgrade --upgrade-strategy eager --editable '.[train,dev]'
endif
	$(BIN)/python tools/lock.py

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel --no-isolation

emulated-pi: $(VENV)/.installed-dev
	$(BIN)/python tools/emulated_pi/board.py
	$(BIN)/python -m pytest -m slow -rs --durations=5 tests/host/test_emulated_pi.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# OpenCV's build with windows links against libraries of a desktop; a machine without them gets the build without windows.
HEADLESS = $(shell sed -n 's/^opencv-python==/opencv-python-headless==/p' locks/base.lock)
define settle_opencv
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
		echo "no libGL or libglib on this machine (apt-get install libgl1 libglib2.0-0): taking OpenCV without windows"; \
		$(PIP) uninstall --quiet --yes opencv-python && $(PIP) install --quiet --no-deps --force-reinstall $(HEADLESS); }
endef

# The stamps are kept inside the environment, so that removing it removes them.
$(VENV)/.installed-train: locks/base.lock locks/train.lock locks/setup.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -r locks/train.lock -r locks/setup.lock
	$(settle_opencv)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: locks/base.lock locks/train.lock locks/setup.lock locks/dev.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -r locks/dev.lock
	$(settle_opencv)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.installed-train

# Debian's python3 without python3-venv has no ensurepip; its pip can still fill an environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "edgeclf needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>/dev/null || echo 'no $(PYTHON)'). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up $(VENV); the first time this downloads TensorFlow and takes a minute or more"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
