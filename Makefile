# make demo   answer a question about a real chest film, without torch
# make test   every test          make check  lint, types, generated pages
# make bench  where the time goes on this machine
# make docs   docs/cli.md         make demo-bundle   src/radvlm_edge/demo.bundle from training/nano
PYTHON ?= python3
# Training is tested in a process of its own: behind all other tests in one process it ends with a segmentation fault,
# whose cause is not known; neither it alone nor any part of the suite shows it.
# The base install is tested on 3.10, the oldest supported, where one is installed (pyenv's count).
PYTHON310 := $(firstword $(foreach python,python3.10 $(wildcard $(PYENV_ROOT)/versions/3.10*/bin/python3.10),$(shell $(python) -c 'import sys; print(sys.executable)' 2>/dev/null)))
OLDEST ?= $(or $(PYTHON310),$(PYTHON))
BIN = .venv/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
BASE_BIN = .venv-base/bin
PACKAGING = pyproject.toml setup.py tools/llama_wheel.py

.PHONY: demo test check bench docs demo-bundle clean

demo: .venv/.base
	$(BIN)/radvlm-edge infer examples/chest.dcm --ask "any effusion?" --timing

test: .venv/.dev .venv-base/.ready
	RADVLM_EDGE_BASE_BIN=$(BASE_BIN) $(BIN)/python -m pytest --ignore-glob='*/test_training_*'
	$(BIN)/python -m pytest tests/test_training_*.py

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/cli_page.py --check docs/cli.md
	$(BIN)/python tools/peers_table.py --check

bench: .venv/.base
	$(BIN)/radvlm-edge bench --film examples/chest.dcm

# The demonstration bundle, from its checkpoint; every version stays in the repository's history for ever.
demo-bundle: .venv/.dev
	$(BIN)/radvlm-edge export training/nano -o src/radvlm_edge/demo.bundle --vision fp16,int8 \
		--calibration training/nano.int8.json --parity full --force
	$(BIN)/python -m radvlm_edge.benchmarks.confidence src/radvlm_edge/demo.bundle

docs: .venv/.dev
	$(BIN)/python tools/cli_page.py docs/cli.md
	$(BIN)/python tools/peers_table.py

.venv/.base: $(PACKAGING)
	@echo "radvlm-edge: installing the runtime into .venv" >&2
	$(PYTHON) -m venv .venv
	$(PIP) install "$$($(BIN)/python tools/llama_wheel.py)" --editable .
	@touch $@

.venv/.dev: .venv/.base
	@echo "radvlm-edge: installing the export, training and test tools into .venv" >&2
	$(PIP) install --editable '.[dev]'
	@touch $@

# What a user gets: a wheel and its base dependencies, in a venv of its own.
.venv-base/.ready: $(PACKAGING) $(shell git ls-files src runtime export calibration training/*.py benchmarks 2>/dev/null)
	@echo "radvlm-edge: installing the built wheel into .venv-base ($(OLDEST))" >&2
	rm -rf .venv-base build dist
	$(OLDEST) -m venv .venv-base
	$(BIN)/python -m pip --quiet wheel --no-deps --wheel-dir dist .
	$(BASE_BIN)/python -m pip --quiet --disable-pip-version-check install "$$($(BIN)/python tools/llama_wheel.py)" dist/*.whl
	@touch $@

clean:
	rm -rf .venv .venv-base build dist *.egg-info
