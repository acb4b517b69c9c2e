# What a developer types. Needs Python 3.11 to 3.13, a C compiler and make, and nothing else:
# .venv is made when it is missing, and brought up to date when a file it depends on changes.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The TPU compiler, apart from what the environment imports: JAX would try it at every start.
TPU_COMPILER := $(VENV)/libtpu/.installed
HF_VENV := .venv-hf
T5X_VENV := .venv-t5x

CHAOS_TRIALS ?= 1000

.PHONY: chaos demo demo-pretrain docs notebook test test-fast test-short test-hf test-t5x lint format bench plan-table plan-record install install-short clean

# The demonstration: docs/demo.md. Whatever is done already is not done again.
.PHONY: demo-confirm demo-sensitivity
DEMO_TARGET ?= entailment
DEMO_SEEDS ?= 3
DEMO ?= short
PROMOT := $(BIN)/promot-t5x promot
REPORT := $(BIN)/promot-t5x report
DEMO_GIN_entailment := promot
DEMO_GIN_translation := translation
DEMO_GIN := $(or $(DEMO_GIN_$(DEMO_TARGET)),$(error DEMO_TARGET is entailment or translation))
DEMO_DIR_entailment := runs/demo
DEMO_DIR_translation := runs/demo_translation
DEMO_DIR := $(DEMO_DIR_$(DEMO_TARGET))
ifneq ($(DEMO),short)
ifneq ($(DEMO) $(DEMO_TARGET),full entailment)
$(error DEMO is short or full, and full has the target entailment only)
endif
endif
SEEDS := --gin.SEEDS="[$$(seq -s, 0 $$(($(DEMO_SEEDS) - 1)))]"
PAGE := "Format specialization and its cure, at toy scale"

demo: $(INSTALLED)  ## ProMoT on a made-up world, from nothing to the table and the page
	$(PROMOT) --gin_file=demo/$(DEMO_GIN).gin $(SEEDS)
	$(REPORT) $(DEMO_DIR) --output $(DEMO_DIR)/report --title $(PAGE) > $(DEMO_DIR)/report.txt
ifeq ($(DEMO),full)
	for run in joint one_shot multitask sequential; do \
	  $(PROMOT) --gin_file=demo/$$run.gin $(SEEDS) || exit; done
	$(REPORT) runs/demo runs/demo_joint runs/demo_one_shot --output runs/demo/report_full
	$(REPORT) runs/demo_multitask runs/demo_sequential --output runs/demo/report_both_targets
endif

demo-pretrain: $(INSTALLED)  ## make the demonstration's base again, from nothing
	$(PROMOT) --gin_file=demo/pretrain.gin
	$(BIN)/python -m tools.ship_demo_base runs/demo_pretrain
	$(BIN)/python -m tools.demo_page docs/demo.md

demo-confirm: $(INSTALLED)  ## the demonstration on ten seeds that no setting was chosen on: docs/demo/
	for target in tiny_rte tiny_enfr; do \
	  $(PROMOT) --gin_file=demo/final.gin --gin.SEEDS="[$$(seq -s, 200 209)]" \
	    --gin.MIXTURE_OR_TASK_NAME="'$$target'" --gin.MODEL_DIR="'runs/demo_confirm/$$target'" \
	    && { echo "Made by \`make demo-confirm\`: $$target, ten fresh seeds."; echo; \
	    $(REPORT) runs/demo_confirm/$$target --format markdown \
	    --compare 'standard fine-tuning' ProMoT --compare 'untrained prompt, removed' ProMoT; \
	    } > runs/demo_confirm/$$target.md && mv runs/demo_confirm/$$target.md docs/demo || exit; done

# One value changed at a time; the first line is the demonstration's own.
SENSITIVITY := LEARNING_RATE=0.005 LEARNING_RATE=0.003 LEARNING_RATE=0.008 \
  PROMPT_LENGTH=5 PROMPT_LENGTH=20 PROMPT_STEPS=100 PROMPT_STEPS=900

demo-sensitivity: $(INSTALLED)  ## how the effect depends on rate, prompt and stage one: docs/demo/
	for value in $(filter LEARNING_RATE=%,$(SENSITIVITY)); do \
	  $(PROMOT) --gin_file=demo/sensitivity_standard.gin --gin.$$value \
	    --gin.LABEL="'standard, $$value'" \
	    --gin.MODEL_DIR="'runs/demo_sensitivity/standard_$$value'" || exit; done
	for value in $(SENSITIVITY); do \
	  $(PROMOT) --gin_file=demo/sensitivity.gin --gin.$$value --gin.LABEL="'ProMoT, $$value'" \
	    --gin.MODEL_DIR="'runs/demo_sensitivity/promot_$$value'" || exit; done
	{ echo "Made by \`make demo-sensitivity\`: tiny_rte, five seeds."; echo; \
	  $(REPORT) runs/demo_sensitivity/* --format markdown \
	    --baseline 'ProMoT, $(firstword $(SENSITIVITY))'; } > runs/sensitivity.md
	mv runs/sensitivity.md docs/demo

test: $(INSTALLED) $(TPU_COMPILER)  ## every test
	$(BIN)/pytest -n $(JOBS)

test-fast: $(INSTALLED)  ## the tests that are not marked slow: while you work
	$(BIN)/pytest -n $(JOBS) -m "not slow"

# Parity with T5X, the demonstration's first steps and going on with them.
SHORT := tests/network/test_transformer.py::test_logits_loss_and_gradients_are_upstreams \
  tests/training/test_adafactor.py::test_twenty_steps_equal_those_of_t5x tests/short
SHORT_VENV := .venv-short/$(subst /,_,$(OTHER))

test-short: install-short  ## the suite in short on another Python: make test-short OTHER=python3.13
	$(SHORT_VENV)/bin/pytest $(SHORT)

# By uv, in a third of pip's time, and only what these tests import.
install-short: $(INSTALLED)
	$(BIN)/uv venv --quiet --allow-existing --python '$(OTHER)' $(SHORT_VENV)
	UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install --quiet --python $(SHORT_VENV) \
	  --constraint constraints.txt --requirements pyproject.toml beartype hypothesis pytest pytest-xdist

test-hf: $(HF_VENV)/.installed  ## against the packages themselves: transformers, peft, CTranslate2, lm-eval, wandb, trackio
	$(HF_VENV)/bin/pytest tests/hf

test-t5x: $(T5X_VENV)/.installed  ## runs under upstream T5X: make test-t5x T5X_PATH=… (docs/t5x.md)
	T5X_PATH='$(T5X_PATH)' $(T5X_VENV)/bin/pytest tests/t5x

lint: $(INSTALLED)  ## style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(INSTALLED)  ## a thousand faults in whole runs: what the same command makes of them
	$(BIN)/python tests/helpers/chaos.py --trials $(CHAOS_TRIALS) $(CHAOS_FLAGS)

docs: $(INSTALLED)  ## the pages of docs/ and the reference, as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebook: $(INSTALLED)  ## run docs/notebook.ipynb, and keep what its cells print and draw
	rm -rf runs/notebook && mkdir -p runs/notebook && cp docs/notebook.ipynb runs/notebook
	cd runs/notebook && PATH="$(CURDIR)/$(BIN):$$PATH" $(CURDIR)/$(BIN)/jupyter-execute --inplace \
	  --timeout=3600 --NotebookClient.record_timing=False notebook.ipynb
	cp runs/notebook/notebook.ipynb docs

bench: $(INSTALLED)  ## time training, saves and decoding on this machine
	$(BIN)/promot-t5x bench

plan-table: $(INSTALLED) $(TPU_COMPILER)  ## compile the paper's runs for TPU slices: docs/plan.md
	$(BIN)/python -m tools.plan_paper_runs > docs/plan.md.part
	mv docs/plan.md.part docs/plan.md

plan-record: $(INSTALLED) $(TPU_COMPILER)  ## renew what the tests allow small plans to take
	$(BIN)/python tests/helpers/plan_helpers.py --record

install: $(INSTALLED)  ## only make .venv

$(INSTALLED): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "promot-t5x needs Python 3.11, 3.12 or 3.13 (3.14 has no TensorFlow), and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1); name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,docs,hub,languages,mecab,tokenizers]'
	touch $@

$(TPU_COMPILER): constraints.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade \
	  --target $(dir $@) libtpu
	touch $@

# An environment of its own, for torch. Which build of torch that is, is up to pip's settings; a CPU
# build is enough (PIP_EXTRA_INDEX_URL or a pip.conf can name where one is).
$(HF_VENV)/.installed: setup.py pyproject.toml constraints.txt constraints-hf.txt
	test -x $(HF_VENV)/bin/python || $(PYTHON) -m venv $(HF_VENV)
	# trackio takes an older pillow than the rest.
	grep -v '^pillow=' constraints.txt > $(HF_VENV)/constraints.txt
	$(HF_VENV)/bin/python -m pip install --quiet --constraint $(HF_VENV)/constraints.txt \
	  --constraint constraints-hf.txt --editable '.[test,test-hf,wandb,trackio,lm-eval]'
	touch $@

$(T5X_VENV)/.installed: setup.py pyproject.toml constraints.txt constraints-t5x.txt
	test -x $(T5X_VENV)/bin/python || $(PYTHON) -m venv $(T5X_VENV)
	$(T5X_VENV)/bin/python -m pip install --quiet --constraint constraints.txt \
	  --constraint constraints-t5x.txt --editable '.[test,t5x]'
	touch $@

clean:  ## remove .venv, .venv-hf, .venv-t5x, .venv-short and what was built
	rm -rf $(VENV) $(HF_VENV) $(T5X_VENV) .venv-short build *.egg-info
