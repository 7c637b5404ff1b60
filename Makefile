# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo   the retail recipe on embedded data
#   make test   ruff, mypy, pytest
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/ready
	$(BIN)/python recipes/retail_product.py --output runs/demo --overwrite

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.venv/ready: pyproject.toml constraints.txt
	@echo "Installing into .venv, about two minutes and 6 GB ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
