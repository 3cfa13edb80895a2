# make song    sets everything up and writes out/song.wav from a description and lyrics
# make test    sets everything up, checks the code and runs the tests, in an order drawn anew each
#              time; the seed is printed, and TEST_ARGS=--randomly-seed=N repeats it
# make docs    builds the documentation into out/site; a warning is an error
# make test-long   the slow tests too: long runs, ranks under load, browsers; then test-floor. Hours
# make test-floor  the quick tests on the oldest torch and Triton of setup.py, in .venv-floor; the
#              torch of that release brings several GB of CUDA libraries
# make ranks   training on 2 to 4 ranks against one device (ZeRO 0-3, bf16, Ulysses), and 200 random
#              faults: takes an hour on two cores
# make triton  the model repository in a real Triton Inference Server (the package nvidia-pytriton)
# make omni    songs by vLLM-Omni's own scheduler and runner on the CPU, in an environment of its own
# make quantize  products in 8 bits by NVIDIA's ModelOpt, which pins other packages
# make gpu     on a machine with an NVIDIA GPU, with its own Python and torch (PYTHON=python3) and
#              no network: proves the kernels there, times them, a step, songs and training beside
#              their peers, writes out/gpu/
#
# Only Python 3.11 or 3.12, with venv, and make are needed. PYTHON=... chooses the interpreter,
# VENV=... the environment's folder.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := $(VENV)/bin
# two single-threaded workers suit two cores; more cores take more: make test WORKERS=8
WORKERS ?= 2
TEST_ARGS ?=
FLOOR ?= .venv-floor
INSTALL := python -m pip install --quiet --disable-pip-version-check

# pip compiles one module after another; this takes all cores. A third of it all are packages' own
# tests and networks of other people, of which a few are imported, and compiled then. Some packages
# ship files that are not meant to be compiled
COMPILE = $(BIN)/python -m compileall -q -j 0 \
  -x '/tests?/|/transformers/models/|/diffusers/(modular_)?pipelines/' $(VENV)/lib \
  >/dev/null 2>&1 || true

.PHONY: help song test test-long test-floor lint docs ranks triton omni quantize gpu tiny clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

song: $(VENV)/.core
	$(BIN)/mudit generate --model tiny \
	  --description "流行抒情，钢琴与弦乐，女声，温暖，BPM 84" \
	  --lyrics mudit_engine/assets/examples/denglong.txt \
	  --user-type amateur --seed 7 --spectrogram --out out/song.wav
	@echo "The song: out/song.wav (what made it: out/song.json, its spectrum: out/song.png)"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" \
	  $(TEST_ARGS)

test-long: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow" $(TEST_ARGS)
	$(MAKE) test-floor

test-floor: $(FLOOR)/.dev
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" \
	  $(TEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation: out/site/index.html"

ranks: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow \
	  tests/training/parallel/test_deepspeed.py tests/training/checkpoints/test_faults.py

# nvidia-pytriton bundles tritonserver, whose Python backend wants numpy < 2
triton: $(VENV)/.dev
	"$(PYTHON)" -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  nvidia-pytriton==0.7.0 numpy==1.26.4
	MUDIT_TRITON_ENV=$(VENV)-triton OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow \
	  tests/serving/test_triton_server.py

# what vLLM-Omni imports there, and no more: its wheels ask for packages of GPUs
omni: $(VENV)/.dev
	"$(PYTHON)" -m venv $(VENV)-omni
	$(VENV)-omni/bin/$(INSTALL) --no-deps -r constraints-omni.txt
	MUDIT_OMNI_PYTHON=$(VENV)-omni/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow \
	  tests/serving/test_omni.py

# ModelOpt pins another onnx than this project: its environment has packages of its own. A torch
# that is not named there brings several GB of CUDA libraries
quantize: $(VENV)/.dev
	"$(PYTHON)" -m venv $(VENV)-modelopt
	$(VENV)-modelopt/bin/$(INSTALL) 'nvidia-modelopt[onnx]==0.47.0' torch==2.13.0
	MUDIT_MODELOPT_PYTHON=$(VENV)-modelopt/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  -m slow tests/export/test_quantize.py

# The machine's own Python with its own torch: make gpu PYTHON=python3 STAGES="numerics step"
gpu:
	$(PYTHON) -m mudit_engine.benchmarks.gpu_run $(STAGES) --out out/gpu

# The embedded models from nothing: corpus, codec, encoder, transformers, student, recogniser, and
# their figures. Takes about a day on two cores, less where the processor multiplies in bfloat16.
tiny: $(VENV)/.dev
	$(BIN)/python -m mudit_engine.training.tiny.pipeline --work data/tiny --workers 2 --jobs 2 \
	  --precision auto

clean:
	rm -rf $(VENV) $(FLOOR) build dist *.egg-info out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || \
	  { echo "No Python on the PATH: apt-get install python3 python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "$$("$(PYTHON)" --version) is not supported: install Python 3.11 or 3.12," \
	      "or name one with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python has no venv: apt-get install" \
	      "python$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; \
	    exit 1; }
	"$(PYTHON)" -m venv $(VENV)
# the pip that comes with Python takes three times as long
	$@ -m pip install --quiet --disable-pip-version-check --no-compile --upgrade -c constraints.txt \
	  pip

# What is installed follows setup.py and constraints.txt; unchanged ones install nothing again.
$(VENV)/.core: setup.py constraints.txt | $(BIN)/python
	$(BIN)/$(INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: setup.py constraints.txt | $(BIN)/python
	$(BIN)/$(INSTALL) --no-compile -c constraints.txt -e '.[dev]'
	$(COMPILE)
	@touch $(VENV)/.core $@

$(VENV)/.docs: setup.py constraints.txt | $(BIN)/python
	$(BIN)/$(INSTALL) -c constraints.txt -e '.[docs]'
	@touch $(VENV)/.core $@

$(FLOOR)/.dev: setup.py constraints.txt
	"$(PYTHON)" -m venv $(FLOOR)
	sed -e 's/^torch==.*/torch==2.11.0/' -e 's/^triton==.*/triton==3.6.0/' \
	  constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/$(INSTALL) -c $(FLOOR)/constraints.txt -e '.[dev]'
	@touch $@
