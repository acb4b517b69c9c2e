# What a developer types. Needs Python 3.11 or 3.12, a C compiler and make, and nothing else:
# .venv is made when it is missing, and brought up to date when a file it depends on changes.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The TPU compiler, apart from what the environment imports: JAX would try it at every start.
TPU_COMPILER := $(VENV)/libtpu/.installed
HF_VENV := .venv-hf

.PHONY: demo demo-pretrain test test-hf lint format bench plan-table plan-record install clean

demo: $(INSTALLED)  ## ProMoT on a made-up world, from nothing to the table
	$(BIN)/promot-t5x promot --gin_file=demo/promot.gin

demo-pretrain: $(INSTALLED)  ## make the demonstration's base again, from nothing
	$(BIN)/promot-t5x promot --gin_file=demo/pretrain.gin
	$(BIN)/python -m promot_t5x.tasks.tiny.ship runs/demo_pretrain/calibrate

test: $(INSTALLED) $(TPU_COMPILER)  ## every test
	$(BIN)/pytest -n $(JOBS)

test-hf: $(HF_VENV)/.installed  ## converted models and prompts against transformers and peft
	$(HF_VENV)/bin/pytest tests/hf

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## time the training and decoding steps on this machine
	$(BIN)/promot-t5x bench

plan-table: $(INSTALLED) $(TPU_COMPILER)  ## compile the paper's runs for TPU slices: docs/plan.md
	$(BIN)/python -m promot_t5x.planning.paper > docs/plan.md.part
	mv docs/plan.md.part docs/plan.md

plan-record: $(INSTALLED) $(TPU_COMPILER)  ## renew what the tests allow small plans to take
	$(BIN)/python tests/plan_lab.py --record

install: $(INSTALLED)  ## only make .venv

$(INSTALLED): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "promot-t5x needs Python 3.11 or 3.12, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1); name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(TPU_COMPILER): constraints.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade \
	  --target $(dir $@) libtpu
	touch $@

# An environment of its own, for torch. Which build of torch that is, is up to pip's settings; a CPU
# build is enough (PIP_EXTRA_INDEX_URL or a pip.conf can name where one is).
$(HF_VENV)/.installed: setup.py pyproject.toml constraints.txt constraints-hf.txt
	test -x $(HF_VENV)/bin/python || $(PYTHON) -m venv $(HF_VENV)
	$(HF_VENV)/bin/python -m pip install --quiet --constraint constraints.txt \
	  --constraint constraints-hf.txt --editable '.[test,test-hf]'
	touch $@

clean:  ## remove .venv, .venv-hf and what was built
	rm -rf $(VENV) $(HF_VENV) build *.egg-info
