# `make demo` and `make test` are all the set-up there is: each makes .venv on first use and starts at once afterwards.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH := .:kernels

.PHONY: demo test lint types aot wheel first-minutes clean

demo: .venv/ready
	$(BIN)/mmssl demo

# Two processes for two cores: one for the types, the kernel tests, on the Triton code in its interpreter and then on the
# PyTorch path, the methods' conformance and whole programs, and one for all others. Some twenty more processes start
# from what the first ones have compiled, so that is kept, whatever the environment says.
PROGRAMS := $(addprefix tests/test_,$(addsuffix .py,compile demo first_minutes readme recipe recipe_text wheel))
test: lint
	@told=$$(mktemp); export OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=; \
	{ $(BIN)/mypy; types=$$?; \
	  TRITON_INTERPRET=1 MMSSL_KERNELS=triton MMSSL_CHECK_SHAPES=0 $(BIN)/python -m pytest tests/kernels; triton=$$?; \
	  $(BIN)/python -m pytest tests/kernels tests/conformance tests/test_kernels_*.py $(PROGRAMS); exit $$((types | triton | $$?)); } > $$told 2>&1 & \
	$(BIN)/python -m pytest --ignore=tests/kernels --ignore=tests/conformance --ignore-glob='tests/test_kernels_*' $(PROGRAMS:%=--ignore=%); others=$$?; \
	wait $$!; kernels=$$?; \
	echo "Types; the kernel tests, on the Triton code in its interpreter and on the PyTorch path, conformance and whole programs:"; cat $$told; rm $$told; \
	exit $$((others | kernels))

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

# Every configuration of every kernel for sm_80, sm_90, sm_100 and gfx942, without a device.
aot: .venv/ready
	$(BIN)/python -m mmssl_kernels.frame.aot

# From a folder of 200 pictures to a model loaded in timm: the seconds to each milestone.
first-minutes: .venv/ready
	$(BIN)/python tests/first_minutes.py

# As a stranger would: build, install with everything from the registry into an empty environment, train a little.
wheel: .venv/ready
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .
	$(PYTHON) -m venv build/trial
	PYTHONPATH= build/trial/bin/python -m pip install --quiet -c constraints.txt "$$(ls dist/mmssl-*.whl)[media,text,cli,interop]"
	PYTHONPATH= build/trial/bin/python -P tests/trial.py build/trial-run

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mmssl needs Python 3.11 or newer; call make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@echo "Installing what mmssl needs into .venv (a few minutes, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[media,text,cli,interop,xformers,dev]'
	@touch $@

clean:
	rm -rf .venv runs build dist
