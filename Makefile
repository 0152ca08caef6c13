# The audit as a graph. `make help` lists what can be asked for.
#
#   make paper                 everything, from a clean clone to paper/paper.pdf, on the simulated sky
#   make PY=python3 paper      the same with the interpreter at hand (GPU machines); no set-up
#   make PROFILE=smoke summary the whole graph, small

PROFILE ?= demo
DEVICE  ?= auto
REAL_DATA ?=
PYTHON  ?= python3

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDEXPANSION:

ifeq ($(origin PY),undefined)
PY := .venv/bin/python
READY := .venv/.ready
else
READY :=
endif

# Large tensors stay mapped instead of being returned and faulted again; figures and PDFs carry no clock time.
export PYTHONPATH := $(CURDIR)
export LENSAUDIT_ROOT := $(CURDIR)
export PYTHONHASHSEED := 0
export SOURCE_DATE_EPOCH := 1767225600
export FORCE_SOURCE_DATE := 1
export MALLOC_MMAP_THRESHOLD_ := 17179869184
export MALLOC_TRIM_THRESHOLD_ := 17179869184
export TOKENIZERS_PARALLELISM := false

A := artifacts/$(basename $(notdir $(PROFILE)))
STARTED := $(shell date +%s)
RUN = $(PY) -m lensaudit

# Which stage reads which. A test compares these lines with what the notebooks declare.
inputs_01_crossmatch := 00_survey
inputs_02_sampling := 00_survey 01_crossmatch
inputs_03_cutouts := 00_survey 02_sampling
inputs_04_training := 03_cutouts
inputs_05_evaluation := 00_survey 03_cutouts 04_training
inputs_06_injection_realism := 00_survey 03_cutouts 04_training 05_evaluation
inputs_07_completeness := 00_survey 03_cutouts 04_training 05_evaluation 06_injection_realism
inputs_08_failure_modes := 01_crossmatch 03_cutouts 05_evaluation 06_injection_realism 07_completeness
inputs_09_summary := 01_crossmatch 02_sampling 03_cutouts 04_training 05_evaluation 06_injection_realism 07_completeness 08_failure_modes
inputs_10_real_input := 04_training@demo 05_evaluation@demo
inputs_11_panel := 06_injection_realism

CHAPTERS := 01_crossmatch 02_sampling 03_cutouts 04_training 05_evaluation 06_injection_realism 07_completeness \
            08_failure_modes 09_summary

.PHONY: help paper summary figures verify test real checkreal lab publish clean setup
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo "PROFILE=$(PROFILE) DEVICE=$(DEVICE); PY=python3 uses the interpreter at hand instead of .venv"

setup: $(READY)  ## make .venv from the hashed lock
summary: $(A)/09_summary/manifest.json  ## run notebooks 01-09 of PROFILE

paper: paper/paper.pdf  ## simulated sky -> figures, tables, paper/paper.pdf; prints the numbers that matter
	@$(RUN) report --profile $(PROFILE) --since $(STARTED)

figures: figures/index.json  ## the figures of PROFILE, promoted to figures/

verify: $(A)/09_summary/manifest.json  ## compare key numbers with stored reference values; judge closure over many skies
	@$(RUN) verify --profile $(PROFILE) --skies

test: $(READY)  ## set up, check style, run all tests with the smoke profile end to end
	@$(PY) -m ruff check .
	@PY=$(PY) $(PY) -m pytest tests

real: checkreal artifacts/real/10_real_input/manifest.json  ## REAL_DATA=folder: real catalogues and stamps through the detector of demo
	@$(RUN) report --profile real --since $(STARTED)

checkreal:
	@test -n "$(REAL_DATA)" || { echo "make real: give the folder of real data, for example make real REAL_DATA=../shared/data"; exit 2; }
	@test -d "$(REAL_DATA)" || { echo "make real: $(REAL_DATA): no such folder; give REAL_DATA=folder"; exit 2; }
	@test -f artifacts/demo/05_evaluation/manifest.json || echo "real: the detector of demo is missing; making it first (about 12 minutes)"

lab: $(READY)  ## JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks

publish: summary  ## executed notebooks and a readable HTML site in publish/
	@$(RUN) publish --profile $(PROFILE)

clean:  ## remove what runs made; keeps .venv and downloaded data
	rm -rf artifacts publish

.venv/.ready: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11 or newer as $(PYTHON); give PYTHON=..."; exit 2; }
	@command -v uv >/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || \
	  { $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	@echo "set-up: .venv from requirements.lock (about 6 GB, one to two minutes)"
	@UV=$$(command -v uv || { test -x .uv/bin/uv && echo .uv/bin/uv; } || echo "$(PYTHON) -m uv"); \
	  $$UV venv --quiet --allow-existing --python $(PYTHON) .venv && \
	  VIRTUAL_ENV=.venv $$UV pip sync --quiet --require-hashes requirements.lock
	@touch $@

# Module lists, so that a change in the library reruns the stages that use it and no others.
MODULES := artifacts/modules.mk
$(MODULES): $(shell find lensaudit -name '*.py') $(wildcard notebooks/*.ipynb)
	@mkdir -p artifacts && $(PYTHON) -m lensaudit.graph > $@.tmp && mv $@.tmp $@
ifeq ($(filter help clean setup lab,$(MAKECMDGOALS)),)
include $(MODULES)
endif

PROFILE_FILE := $(if $(filter %.toml,$(PROFILE)),$(PROFILE),lensaudit/profiles/$(PROFILE).toml)
$(if $(wildcard $(PROFILE_FILE)),,$(error PROFILE=$(PROFILE): no such profile; use demo, smoke, real, dr10 or the path of a .toml file))
ROOT_OPTION = $(if $(REAL_DATA),--data-root "$(REAL_DATA)")
# What stands in figures/ and paper/generated/ belongs to one profile; asked for another, it is promoted again.
PROMOTED := $(shell sed -n 's/^ "profile": "\(.*\)".*/\1/p' figures/index.json 2>/dev/null)

$(A)/00_survey/made: $(modules_00_survey) $(PROFILE_FILE) $(wildcard data_manifests/*.toml) | $(READY)
	@$(RUN) survey --profile $(PROFILE) $(ROOT_OPTION)
	@touch $@
$(A)/00_survey/manifest.json: $(A)/00_survey/made ;

# A notebook's manifest changes only when its result does; then make stops there.
$(A)/%/executed.ipynb: notebooks/%.ipynb $$(modules_$$*) $$(foreach s,$$(inputs_$$*),$(A)/$$s/manifest.json) \
                       $(PROFILE_FILE) | $(READY)
	@$(RUN) run $* --profile $(PROFILE) --device $(DEVICE) $(ROOT_OPTION)
$(A)/%/manifest.json: $(A)/%/executed.ipynb ;
$(A)/09_summary/executed.ipynb: $(wildcard benchmarks/results/*.json)
$(A)/06_injection_realism/executed.ipynb: $(wildcard benchmarks/results/injection_*.json grades/$(basename $(notdir $(PROFILE)))/*.csv)
.PRECIOUS: $(A)/%/executed.ipynb $(A)/%/manifest.json $(A)/00_survey/made $(A)/00_survey/manifest.json

artifacts/real/10_real_input/executed.ipynb: notebooks/10_real_input.ipynb $(modules_10_real_input) \
    $(foreach s,$(inputs_10_real_input),artifacts/$(lastword $(subst @, ,$s))/$(firstword $(subst @, ,$s))/manifest.json) \
    lensaudit/profiles/real.toml | checkreal $(READY)
	@$(RUN) run 10_real_input --profile real --device $(DEVICE) --data-root "$(REAL_DATA)"
artifacts/real/10_real_input/manifest.json: artifacts/real/10_real_input/executed.ipynb ;

ifneq ($(PROMOTED),$(basename $(notdir $(PROFILE))))
.PHONY: figures/index.json
endif
figures/index.json: $(foreach c,$(CHAPTERS),$(A)/$c/manifest.json)
	@$(RUN) promote --profile $(PROFILE)

paper/paper.pdf: figures/index.json paper/paper.tex paper/references.bib
	@$(RUN) verify --profile $(PROFILE)
	@$(RUN) paper
