# Two commands on a machine with Python (3.11 or newer), pip, make and git:  `make lab`  and  `make test`
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
UV = $(VENV)/bin/uv
PIP_UV = --quiet --disable-pip-version-check "uv>=0.11,<1"
UV_INSTALL = $(UV) pip install --quiet --python $(VENV)/bin/python
# what the recipes of `lint` and `test` run comes from the environment, as it does under pixi
IN_VENV = PATH="$(abspath $(VENV))/bin:$$PATH"

# a find-links folder that pip is told of is shown to uv too (uv doesn't read pip's settings)
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
endif

.PHONY: help setup lab test lint lock clean
help:
	@echo "make lab    JupyterLab on the notebooks (the first time it installs everything into $(VENV))"
	@echo "make test   lint, types, all tests and notebooks        make lint    the first two of them"
	@echo "make setup  install only                                make lock    refresh requirements.lock"
	@echo "make clean  remove $(VENV) and caches"
.DEFAULT_GOAL := help

# The stamp is written last, so an install that failed half-way is done again; it is older than what it was made from after any change of that.
STAMP = $(VENV)/.ok
$(STAMP): requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hepattn needs Python 3.11 or newer and $(PYTHON) is older: name another one, as in  make PYTHON=python3.12 lab" >&2; exit 1; }
	@rm -f $@
	@# the second half is for Debian's python3 without python3-venv, where a new environment can't be given a pip of its own
	test -x $(UV) || { $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install $(PIP_UV); } || \
	  { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install $(PIP_UV); }
	$(UV_INSTALL) --no-deps --require-hashes -r requirements.lock
	$(UV_INSTALL) --no-deps --no-build-isolation --editable .
	$(UV_INSTALL) $(TORCH)
	@touch $@

setup: $(STAMP)

# Threads of OpenMP that wait for one another sleep at once, and don't spin: where a browser takes one of two cores, a
# training in a notebook would else nearly stall (1.1 steps/s in place of 8.6). It must be set before Python starts.
lab: setup
	$(IN_VENV) GOMP_SPINCOUNT=0 jupyter lab notebooks $(LAB)

lint: setup
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy
	$(IN_VENV) nbstripout --keep-id --verify notebooks/*.ipynb

# notebooks begin first, in the order given, so that no core is idle at the end
test: lint
	$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder --nbmake --nbmake-timeout=600 notebooks tests $(PYTEST)

# one hash lock for every platform and Python >= 3.11; versions stay as they are unless `make lock UPGRADE=--upgrade`
lock: setup
	$(UV) pip compile pyproject.toml requirements.in --extra sim --extra dev --override no-torch.override --no-emit-package torch \
	  --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(UPGRADE) --quiet -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
