# `make demo` shows what selftaught does; `make test` runs every check; `make docs` builds the site.
# Each sets up .venv by itself.

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# The first Python that is new enough; or say which: make test PYTHON=/path/to/python3.12
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
# A torch that is already in .venv, a build for the CPU say, is kept: pip must not replace it by a newer one.
KEEP_TORCH := import importlib.metadata as m; \
	print(*(f"{d.name}=={d.version}" for d in m.distributions() if d.name in ("torch", "torchvision")), sep="\n")

.PHONY: help demo test abuse docs lint format clean distclean
.NOTPARALLEL: # two pips at once would spoil .venv

help:
	@echo "make demo       train on the photographs that come along, and write demo/report.html (some minutes)"
	@echo "make test       ruff, pyrefly and the test suite: all that a change must pass"
	@echo "make abuse      bad inputs, kills and full disks, for a release; writes docs/reliability.md (ten minutes)"
	@echo "make docs       build the documentation as a site, in site/; warnings are errors"
	@echo "make lint       ruff and pyrefly alone"
	@echo "make format     let ruff put the code into shape"
	@echo "make clean      remove caches and what was built; make distclean removes .venv too"

demo: $(VENV)/installed-demo
	$(BIN)/python -m selftaught demo --out demo

# Compiled tests are kept: compiling them is a large part of the time that collecting them takes.
test: lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

abuse: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.abuse.table

docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The demo needs little; what the tests need holds all of that, too. Each is made anew when pyproject.toml changes.
$(VENV)/installed-demo: EXTRAS := demo,fast
$(VENV)/installed-demo: STAMPS := $(VENV)/installed-demo
$(VENV)/installed-dev: EXTRAS := demo,fast,dev
$(VENV)/installed-dev: STAMPS := $(VENV)/installed-demo $(VENV)/installed-dev
# Stands beside both: MkDocs reads the package, and needs nothing of the tests.
$(VENV)/installed-docs: EXTRAS := docs
$(VENV)/installed-docs: STAMPS := $(VENV)/installed-docs

$(VENV)/installed-demo $(VENV)/installed-dev $(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	@$(BIN)/python -c '$(NEW_ENOUGH)' || { echo "$(VENV) has a Python older than 3.11: run make distclean first." >&2; exit 1; }
	@echo "Installing into $(VENV): the first time takes some minutes, most of them for PyTorch."
	@$(BIN)/python -c '$(KEEP_TORCH)' > $(VENV)/keep.txt
	$(BIN)/python -m pip install --constraint $(VENV)/keep.txt --editable '.[$(EXTRAS)]'
	@touch $(STAMPS)

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { echo "selftaught needs Python 3.11 or newer:" \
		"install it, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment:" \
		"install its venv module (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }

clean:
	rm -rf build dist demo site .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
