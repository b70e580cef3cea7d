# make demo [IMAGE=photo.jpg]   install the base package into .venv and predict a photo
# make test                     install everything into .venv-dev and run the tests
# make lint                     ruff and mypy, in .venv-dev
# make docs                     the documentation site into site/, in .venv-dev; warnings are errors
# make clean                    remove both environments, the demo's output and the site

SHELL := /bin/bash
IMAGE ?= demo/astronaut.png

# The first Python that really runs and is new enough.
PYTHON := $(shell for p in python3 python3.12 python3.11 python3.10 python3.13 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
DEV := .venv-dev/bin
PACKAGE := pyproject.toml constraints.txt README.md $(shell find src -type f -not -path '*/__pycache__/*')

.PHONY: demo test lint docs clean

demo: .venv/.installed $(filter demo/astronaut.png,$(IMAGE))
	$(BIN)/vqhps predict $(IMAGE) -o demo

test: .venv-dev/.installed
	$(DEV)/python -m pytest -n 2 --dist loadfile

lint: .venv-dev/.installed
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy

docs: .venv-dev/.installed
	NO_MKDOCS_2_WARNING=1 $(DEV)/python -m mkdocs build --quiet --strict

clean:
	rm -rf .venv .venv-dev demo site

demo/astronaut.png: | .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt scikit-image
	@mkdir -p demo
	$(BIN)/python -c "from PIL import Image; from skimage import data; Image.fromarray(data.astronaut()).save('$@')"

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "vqhps needs Python 3.10 or newer; none was found" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: $(PACKAGE) | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt .
	@touch $@

.venv-dev/bin/python:
	@test -n "$(PYTHON)" || { echo "vqhps needs Python 3.10 or newer; none was found" >&2; exit 1; }
	$(PYTHON) -m venv .venv-dev

.venv-dev/.installed: pyproject.toml constraints.txt | .venv-dev/bin/python
	$(DEV)/python -m pip install --quiet -c constraints.txt -e ".[train,dev,docs]"
	@touch $@
