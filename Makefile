# Two commands set everything up: `make demo` and `make test`. uv is used when it is there, else venv and pip.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Threads of torch would only wait for each other beside as many processes.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo loops test test-long check fuzz lock clean

demo: $(STAMP)
	$(VENV)/bin/gbnn-compress demo demo

# Workers only load what is compiled here.
loops: $(STAMP)
	$(PYTHON) scripts/compile_loops.py

test: loops
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PARALLEL)

test-long: loops
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PARALLEL) -m 'long and not slow'

check: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

fuzz: $(STAMP)
	$(PYTHON) benchmarks/fuzz.py --seconds 60

$(STAMP): pyproject.toml requirements.lock
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing $(VENV) && \
		uv pip install --quiet --python $(PYTHON) -c requirements.lock -e . --group dev; \
	else \
		python3 -m venv $(VENV) && \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check 'pip>=25.1' && \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e . --group dev; \
	fi
	@touch $@

lock: $(STAMP)
	$(PYTHON) scripts/lock.py > requirements.lock

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
