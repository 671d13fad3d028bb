# Everything from nothing: `make train` and `make test` make a virtual environment in .venv first.
# Another interpreter: `make train PYTHON=python3.12`. Another torch build: install it into .venv beforehand.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
CONFIG ?= configs/msm_rooms.yaml
BIN := $(VENV)/bin

.PHONY: install train test test-spconv sanitize pictures lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "pcssl needs Python 3.10 to 3.13; $(PYTHON) is another. Try: make install PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14" numpy "scikit-build-core>=0.10" cmake ninja $(if $(SCATTER),setuptools wheel)
	@# Built with the torch that is there: an isolated build would install a second one first.
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

train: install
	$(BIN)/python tools/train.py $(CONFIG) --resume

test: install
	$(BIN)/python -m pytest

# The spconv engine's tests, in an environment of their own; SCATTER=1 also builds torch-scatter, some minutes.
test-spconv: SPCONV_VENV = .venv-spconv$(if $(SCATTER),-scatter)
test-spconv:
	$(MAKE) install VENV=$(SPCONV_VENV) EXTRAS=test,spconv$(if $(SCATTER),,-only)
	$(SPCONV_VENV)/bin/python -m pytest -m "spconv and not gpu"
sanitize: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -m slow tests/test_sanitizers.py

# The pictures of README.md and docs/visualization.md. ROOM and QUERY: a prepared scene and a place in it; SCAN: the lounge;
# HIDING: a model whose student has voxels hidden from it and is asked there alone.
CHECKPOINT ?= runs/msm_rooms/checkpoint.pt
PROBE ?= configs/data/rooms.yaml
ROOM ?= data/rooms/val/scene0052_00
QUERY ?= 3.4,0.88,0.73
HIDING ?= runs/ablations/hidden_voxels/seed0/checkpoint.pt
DRAW = $(BIN)/python tools/visualize.py
FOUR = --probe $(PROBE) --mode input,pca,similarity,predictions

pictures: install
	$(DRAW) --checkpoint $(CHECKPOINT) $(ROOM) $(FOUR) --query $(QUERY) --out docs/pictures/room.jpg
	test -z "$(SCAN)" || $(DRAW) --checkpoint $(CHECKPOINT) "$(SCAN)" $(FOUR) --out docs/pictures/lounge.jpg
	test -z "$(SCAN)" -o ! -f "$(HIDING)" || \
	  $(DRAW) --checkpoint "$(HIDING)" "$(SCAN)" --mode input,views,student,targets --across 4 --width 1500 --out docs/pictures/masked.jpg

lint: install
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) .venv-spconv .venv-spconv-scatter build *.egg-info .pytest_cache .ruff_cache
