# Two commands for everybody: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
CLIP := videollm_mod/assets/demo.mp4

.PHONY: demo test slow check clean

# One stamp per set of extras, newer than what it was made from. torch is pinned by constraints.txt.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

# Has all that the first one has, so that whoever tests installs once.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[slow]'
	touch $@

# Narrates the bundled clip in real time; leaves an annotated video, subtitles, events and a picture in $(OUT).
demo: $(VENV)/.installed
	mkdir -p $(OUT)
	$(BIN)/videollm-mod watch $(CLIP) --speed realtime --ask "What happened last?@52" \
		--jsonl $(OUT)/events.jsonl --srt $(OUT)/events.srt --video $(OUT)/narrated.mp4
	$(BIN)/videollm-mod show $(CLIP) --start 25 --end 37 --picture $(OUT)/kept.png
	@echo "Done: see $(OUT)/narrated.mp4 (what was said, and the tokens kept), $(OUT)/events.srt (the words, as" \
		"subtitles) and $(OUT)/kept.png (what each routed layer keeps)." >&2

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

# What takes long: whole runs, several processes, resuming.
slow: $(VENV)/.installed-slow
	$(BIN)/python -m pytest -n 2 -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) out
