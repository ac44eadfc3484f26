# Every target makes the virtual environment it needs: Python 3.10 or newer and make are enough.
# A second run installs nothing, unless pyproject.toml or the pinned versions have changed.

PYTHON ?= python3
PYTHON_LOWEST ?= python3.11
# Test processes; each holds a TensorFlow of its own.
WORKERS ?= 2
# The site is part of the check from Python 3.11 on, which Sphinx needs.
DOCS_STAGE = $(shell $(PYTHON) -c 'import sys; print("docs" * (sys.version_info >= (3, 11)))')
# Handed on to the script or to pytest.
ARGS ?=
# Instruction sets whose kernels are run with sanitizers: all that this processor has.
SANITIZED ?= avx2 $(shell grep -q avx512vl /proc/cpuinfo && echo avx512) \
	$(shell grep -q avx512_bf16 /proc/cpuinfo && echo avx512bf16)

VENV := .venv
VENV_LOWEST := .venv-lowest
VENV_ADDONS := .venv-addons
VENV_WEB := .venv-web
VENV_ACCELERATE := .venv-accelerate
RUN := $(VENV)/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Whose wheel the library for aarch64 is linked against.
TENSORFLOW_AARCH64 := 2.21.0
# Prints what CMake is to know of TensorFlow.
DEFINITIONS := import tensorflow as tf; find = tf.sysconfig; \
	print("-DTF_INCLUDE=" + find.get_include(), "-DTF_LIBRARY=" + find.get_lib(), \
	"-DTF_ABI=%d" % find.CXX11_ABI_FLAG, "-DTF_MINOR=" + tf.__version__.rpartition(".")[0])

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo detect register rectify pictures test check install format-check lint types format bench \
	bench-correlation bench-exported docs docs-serve guides ops sanitize fuzz fuzz-sanitized wheel wheels wheels-test serving soak \
	test-accelerate bench-accelerate bazel test-lowest goldens-addons support engines aarch64 release clean

help: ## print these targets
	@echo 'Targets (options: PYTHON=python3.12, ARGS="...", WORKERS=4):'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.has-demo ## train on distorted digits, draw the figure, serve the model (ARGS=--quick)
	@echo "==> Running examples/distorted_digits.py $(ARGS)"
	@$(RUN) examples/distorted_digits.py $(ARGS)

detect: $(VENV)/.has-demo ## train detectors with three ways of pooling regions, compare them (ARGS=--quick)
	@echo "==> Running examples/detect_digits.py $(ARGS)"
	@$(RUN) examples/detect_digits.py $(ARGS)

register: $(VENV)/.has-register ## train a network to register brains, compare it with SyN (ARGS=--quick)
	@echo "==> Running examples/register_brains.py $(ARGS)"
	@$(RUN) examples/register_brains.py $(ARGS)

rectify: $(VENV)/.has-demo ## train a reader of curved text that straightens it (ARGS=--quick)
	@echo "==> Running examples/rectify_text.py $(ARGS)"
	@$(RUN) examples/rectify_text.py $(ARGS)

pictures: $(VENV)/.has-demo ## draw the pictures of docs (ARGS=--quick)
	@echo "==> Running examples/pictures.py $(ARGS)"
	@$(RUN) examples/pictures.py $(ARGS)
	@$(RUN) examples/coordinates_pictures.py $(ARGS)

docs: $(VENV)/.has-docs ## build the site in build/site; warnings are errors
	@rm -rf build/site build/site-doctrees  # what is read again alone is warned of again
	@$(RUN) -m sphinx -q -W --keep-going -c docs/site -d build/site-doctrees $(ARGS) docs build/site
	@echo "==> build/site/index.html"

docs-serve: docs ## build the site and serve it on port 8000
	@$(RUN) -m http.server --bind localhost --directory build/site 8000

guides: $(VENV)/.has-guides ## run the guides that have changed (ARGS="NAME", ARGS=--quick: all of them shortened)
	@$(RUN) docs/site/guides.py $(ARGS)

test: ops $(DOCS_STAGE:docs=$(VENV)/.has-docs) ## run the tests (ARGS="tests/layer_contract_test.py -k roi")
	@echo "==> Running the tests in $(WORKERS) processes (20 to 35 minutes on two cores)"
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: ## check format, lint and types, build the site and the library, run the tests and 1,000 hostile calls
	@$(if $(DOCS_STAGE),,echo "==> docs: left out, Sphinx needs Python 3.11")
	@for stage in install format-check lint types $(DOCS_STAGE) ops test "fuzz ARGS="; do \
		start=$$(date +%s); \
		$(MAKE) --no-print-directory $$stage || { echo "==> $$stage failed"; exit 1; }; \
		echo "==> $$stage: $$(($$(date +%s) - start)) s"; \
	done

ops: $(VENV)/.has-test ## build the compiled library against the installed TensorFlow
	@$(RUN) -m tf_deform build

sanitize: $(VENV)/.has-test ## run the kernels with AddressSanitizer and UndefinedBehaviorSanitizer (SANITIZED="avx2 avx512")
	@echo "==> Building build/sanitize for $(SANITIZED) (a minute each)"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S custom_ops -B build/sanitize -DSANITIZE=ON \
		-DSANITIZED="$$(echo $(SANITIZED) | tr ' ' ';')" $$($(RUN) -c '$(DEFINITIONS)') >/dev/null
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/sanitize --parallel $(WORKERS) --target kernel_tests
	@for set in $(SANITIZED); do echo "==> $$set"; build/sanitize/kernel_test_$$set 200 || exit 1; done

fuzz: ops ## call the library's ops with hostile arguments (ARGS="--cases 40000 --mode eager --seed 1")
	@$(RUN) tests/fuzz/fuzz.py $(ARGS)

fuzz-sanitized: $(VENV)/.has-test ## the same with AddressSanitizer and UndefinedBehaviorSanitizer
	@echo "==> Building build/sanitize (some minutes)"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S custom_ops -B build/sanitize -DSANITIZE=ON -DSANITIZED=avx2 \
		$$($(RUN) -c '$(DEFINITIONS)') >/dev/null
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/sanitize --parallel $(WORKERS)
	@$(RUN) tests/fuzz/fuzz.py --sanitized build/sanitize $(ARGS)

wheel: $(VENV)/.has-wheel ## make a wheel with the compiled library inside, for the installed TensorFlow
	@$(RUN) custom_ops/wheels/build.py --installed $(ARGS)

wheels: $(VENV)/.has-wheels ## make the wheel for every TensorFlow, and the one without a library, in dist
	@$(RUN) custom_ops/wheels/build.py $(ARGS)

wheels-test: ## try the wheels of dist in fresh environments with every TensorFlow (ARGS="--only 2.20")
	@$(PYTHON) custom_ops/wheels/matrix.py $(ARGS)

sanitize-cuda: ops ## run the CUDA kernels on the CPU, with AddressSanitizer and ThreadSanitizer
	@echo "==> Building build/sanitize-cuda (a minute)"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S custom_ops -B build/sanitize-cuda >/dev/null
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/sanitize-cuda --target cuda_tests
	@kernels=$$($(RUN) -c 'from tf_deform.compiled import location; print(location.library_path().parent)'); \
		for sanitizer in address thread; do \
			build/sanitize-cuda/cuda_test_$$sanitizer $$kernels/tf_deform_kernels_baseline.so 6 || exit 1; \
		done

install: $(VENV)/.has-dev $(VENV)/.has-test ## make the virtual environment for development
	@:

format-check: $(VENV)/.has-dev ## check that the code is formatted
	@$(RUN) -m ruff format --check

lint: $(VENV)/.has-dev ## look for mistakes and bad style
	@$(RUN) -m ruff check

types: $(VENV)/.has-dev ## check the types
	@$(RUN) -m mypy

format: $(VENV)/.has-dev ## format the code and mend what can be mended
	@$(RUN) -m ruff check --fix-only
	@$(RUN) -m ruff format

bench: ops $(VENV)/.has-torchvision ## time the operators beside their peers
	@echo "==> Running benchmarks/portable.py $(ARGS)"
	@$(RUN) benchmarks/portable.py $(ARGS)
	@echo "==> Running benchmarks/compiled.py $(ARGS)"
	@$(RUN) benchmarks/compiled.py $(ARGS)

bench-exported: ops serving $(VENV)/.has-engines ## time exported models in onnxruntime, OpenVINO and LiteRT
	@echo "==> Running benchmarks/exported.py $(ARGS)"
	@$(RUN) benchmarks/exported.py $(ARGS)

bench-correlation: $(VENV)/.has-test $(VENV_ADDONS)/.has-addons ## time the correlation beside TensorFlow Addons'
	@echo "==> Running benchmarks/correlation.py $(ARGS)"
	@$(RUN) benchmarks/correlation.py $(ARGS)

support: ops ## measure what each layer does in each engine, write docs/support.md (ARGS="--columns onnx")
	@$(RUN) benchmarks/support $(ARGS)

engines: ops serving $(VENV)/.has-engines $(VENV_WEB)/.has-tensorflowjs ## the same in OpenVINO, TensorFlow.js and others
	@PATH="$$PATH:$(CURDIR)/$(VENV_WEB)/bin" NODE_PATH=$(CURDIR)/$(VENV_WEB)/node_modules \
		$(RUN) benchmarks/support --engines $(ARGS)

aarch64: $(VENV)/.has-test ## cross-compile the library for aarch64, run its kernels in QEMU
	@for program in aarch64-linux-gnu-g++ qemu-aarch64; do \
		command -v $$program >/dev/null || { echo "$$program is missing." \
			"On Debian or Ubuntu: apt install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }; \
	done
	@PYTHONPATH=custom_ops/wheels $(RUN) -c \
		'import headers; headers.fetch("$(TENSORFLOW_AARCH64)", "aarch64", "build/wheels")'
	@echo "==> Building build/aarch64 (two minutes)"
	@wheel=$(CURDIR)/build/wheels/tensorflow-$(TENSORFLOW_AARCH64)-aarch64/tensorflow; \
		PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S custom_ops -B build/aarch64 \
		-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DTF_INCLUDE=$$wheel/include -DTF_LIBRARY=$$wheel \
		-DTF_ABI=1 -DTF_MINOR=$(basename $(TENSORFLOW_AARCH64)) >/dev/null
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/aarch64 --parallel $(WORKERS) \
		--target all --target kernel_tests
	@qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/kernel_test_baseline 100

serving: $(VENV)/.has-test ## build the C++ program that serves a SavedModel
	@$(MAKE) --no-print-directory -C custom_ops/serving PYTHON=$(abspath $(RUN))

soak: $(VENV)/.has-demo $(VENV)/.has-test ## put the digits model under load in the C++ program
	@$(MAKE) --no-print-directory -C custom_ops/serving soak PYTHON=$(abspath $(RUN)) ARGS="$(ARGS)"

bazel: $(VENV)/.has-test ## build the ops and run their tests with Bazel, if it is there
	@command -v bazel >/dev/null || { echo "Bazel is missing. On Debian or Ubuntu: apt install bazel-bootstrap \
		bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib" >&2; exit 1; }
	@PYTHON_BIN_PATH=$(abspath $(RUN)) bazel test -c opt --test_output=errors \
		$(if $(wildcard /usr/share/bazel/rules),--config=debian) $(ARGS) \
		//custom_ops:kernel_test //custom_ops/serving:linked_test //:compiled_test

test-lowest: $(VENV_LOWEST)/.has-test ## run the tests on the lowest versions supported
	@$(VENV_LOWEST)/bin/python -m tf_deform build
	@echo "==> Running the tests on the lowest versions in $(WORKERS) processes"
	@$(VENV_LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-accelerate: $(VENV_ACCELERATE)/.has-accelerate ## accelerate on KerasHub's and zeromodels' models, with Python 3.11
	@$(VENV_ACCELERATE)/bin/python -m tf_deform build
	@$(VENV_ACCELERATE)/bin/python -m pytest -n $(WORKERS) --dist worksteal tests/accelerate_packages_test.py $(ARGS)

bench-accelerate: $(VENV_ACCELERATE)/.has-accelerate ## time those models before and after; writes docs/accelerate.md
	@$(VENV_ACCELERATE)/bin/python -m tf_deform build
	@$(VENV_ACCELERATE)/bin/python benchmarks/accelerate.py $(ARGS)

goldens-addons: $(VENV_ADDONS)/.has-addons ## write what TensorFlow Addons returns, for the tests
	@echo "==> Writing tests/goldens/addons.npz"
	@$(VENV_ADDONS)/bin/python -W ignore tests/goldens/make_addons_goldens.py

release: $(VENV)/.has-test $(VENV)/.has-wheels ## commit a release and make its files (VERSION=0.2.0); uploads nothing
	@$(RUN) custom_ops/wheels/release.py $(VERSION)

clean: ## remove the virtual environments, builds and caches
	rm -rf $(VENV) $(VENV_LOWEST) $(VENV_ADDONS) $(VENV_WEB) $(VENV_ACCELERATE) build dist *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment $(1) made by the Python $(2).
define make_venv
	@$(2) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "tf_deform needs Python 3.10 or newer, but $(2) says: $$($(2) --version 2>&1 | head -n 1)" >&2; \
		echo "Name another one: make PYTHON=python3.12 (for test-lowest PYTHON_LOWEST=...)" >&2; \
		exit 1; }
	@echo "==> Making the virtual environment $(1) with $$($(2) --version)"
	@$(2) -m venv --clear $(1)
	@touch $@
endef

# tf_deform, editable, and its extra $(2) in the virtual environment $(1), at the versions in $(3).
define install_extra
	@echo "==> Installing tf_deform[$(2)] into $(1) (a few minutes the first time)"
	@$(1)/bin/python -m pip install -qq --constraint $(3) --editable '.[$(2)]'
	@touch $@
endef

$(VENV)/.made:
	$(call make_venv,$(VENV),$(PYTHON))

$(VENV_LOWEST)/.made:
	$(call make_venv,$(VENV_LOWEST),$(PYTHON_LOWEST))

$(VENV)/.has-%: pyproject.toml constraints.txt | $(VENV)/.made
	$(call install_extra,$(VENV),$*,constraints.txt)

# Without what it depends on, which would be PyTorch for CUDA.
$(VENV)/.has-torchvision: $(VENV)/.has-bench
	@$(VENV)/bin/python -m pip install -qq --no-deps torchvision==0.28.0
	@touch $@

$(VENV_LOWEST)/.has-test: pyproject.toml constraints-lowest.txt | $(VENV_LOWEST)/.made
	$(call install_extra,$(VENV_LOWEST),test,constraints-lowest.txt)

$(VENV_ADDONS)/.made:
	$(call make_venv,$(VENV_ADDONS),$(PYTHON_LOWEST))

$(VENV_ADDONS)/.has-addons: tests/goldens/requirements.txt | $(VENV_ADDONS)/.made
	@echo "==> Installing TensorFlow Addons into $(VENV_ADDONS) (a few minutes the first time)"
	@$(VENV_ADDONS)/bin/python -m pip install -qq --requirement $<
	@touch $@

$(VENV_ACCELERATE)/.made:
	$(call make_venv,$(VENV_ACCELERATE),$(PYTHON_LOWEST))

$(VENV_ACCELERATE)/.has-accelerate: pyproject.toml constraints.txt | $(VENV_ACCELERATE)/.made
	$(call install_extra,$(VENV_ACCELERATE),accelerate,constraints.txt)

$(VENV_WEB)/.made:
	$(call make_venv,$(VENV_WEB),$(PYTHON_LOWEST))

$(VENV_WEB)/.has-tensorflowjs: benchmarks/support/requirements.txt | $(VENV_WEB)/.made
	@command -v npm >/dev/null || { echo "node and npm are missing. On Debian or Ubuntu: apt install nodejs npm" >&2; exit 1; }
	@echo "==> Installing TensorFlow.js into $(VENV_WEB) (a few minutes the first time)"
	@$(VENV_WEB)/bin/python -m pip install -qq --requirement $<
	@npm install --silent --no-save --prefix $(VENV_WEB) @tensorflow/tfjs@4.22.0
	@touch $@
