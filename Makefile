# Each target says in one line what it does; `make` alone prints these lines.

PYTHON ?= python3
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

BIN := .venv/bin
INSTALLED := .venv/.installed
CHAPTERS := $(sort $(shell find book -mindepth 2 -name '*.md'))

# A user's own settings must not change what the book shows.
export KERAS_BACKEND := tensorflow
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help setup data book pdf test bench experiments record-gpu notebooks check clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(INSTALLED)  ## make .venv and install the pinned requirements and bnkit itself

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

data: $(INSTALLED)  ## make sure that Fashion-MNIST and MNIST are at hand, checked; fetch what is not
	@$(BIN)/python -m bnkit.keras.data

# Pages are executed anew when what they read or call has changed: the cache of executed pages looks
# at their own cells alone. The name of the stamp is a digest of it.
CODE = $(shell find bnkit book/results requirements.txt -type f -not -path '*/__pycache__/*' \
	| LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c 1-16)

# Sphinx reads a page once and then remembers it, without the warnings that it gave. So what it
# remembers is kept only from a build that passed: a failed build fails again. Nor does it copy a
# style sheet anew unless it has pages to write.
book: $(INSTALLED)  ## execute every chapter and build the book in _build/html
	@$(BIN)/python -m bnkit.keras.data fashion-mnist
	@$(BIN)/python book/claims_table.py --check
	@[ -e _build/code-$(CODE) ] || { rm -rf _build; mkdir _build; touch _build/code-$(CODE); }
	@[ -e _build/passed ] && [ -z "$$(find book/assets book/finish -newer _build/passed -not -name '*.pyc' -type f)" ] \
	|| rm -rf _build/.doctrees
	@rm -f _build/passed
	@$(BIN)/jupyter-book build . -W --keep-going -n 2>&1 | tee _build/log || { \
	  printf '\nThe book was not built. What is wrong:\n\n'; \
	  sed -n '/^WARNING: All log messages/d; /WARNING: /p; /^nbclient/,/^The above exception/{ /^The above/!p }' _build/log; \
	  exit 1; }
	@! grep -rlE --include='*.html' 'alt="[^"]*_images/' _build/html || { \
	  echo 'A figure of the pages above has no description (mystnb: image: alt:).'; exit 1; }
	@$(BIN)/lychee --offline --include-fragments --quiet --no-progress --exclude-path _static \
	  --root-dir "$$PWD/_build/html" '_build/html/**/*.html'
	@touch _build/passed
	@printf '\nThe book is ready. Open it in a browser:\n  _build/html/index.html\n'
	@$(BIN)/python -c 'import pathlib; print(" ", pathlib.Path("_build/html/index.html").resolve().as_uri())'

pdf: book  ## print the whole book as _build/book.pdf, and pack the site as _build/book.zip
	$(BIN)/jupyter-book build . --builder singlehtml >> _build/log
	cp _build/singlehtml/book/index.html _build/singlehtml/book.html  # its links start from there
	$(BIN)/python book/finish/pdf.py _build/singlehtml/book.html _build/book.pdf
	$(BIN)/python -m zipfile -c _build/book.zip _build/html

test: data check  ## run the checks and the whole test suite
	$(BIN)/python -m pytest

bench: $(INSTALLED)  ## hold speed and digits against other libraries, those that are installed
	$(BIN)/python -m bnkit.bench --output _build/bench.json
	$(BIN)/python -m bnkit.accuracy --output _build/accuracy.json

PRESET ?= quick

experiments: data  ## run every experiment that has not finished yet (PRESET=full for the long ones)
	@for name in $$($(BIN)/python -m bnkit.experiments list | cut -d ' ' -f 1); do \
	  $(BIN)/python -m bnkit.experiments run $$name --preset $(PRESET) --resume; \
	done

# For a machine with a GPU, JAX and Keras, TensorFlow not needed; without .venv: RECORDER=python3.
RECORDER ?= $(BIN)/python
RECORDS ?= paper-figure learning-rate depth batch-size shift-and-smoothness placement dropout \
  five-variants recipe
RECORDED ?= book/results/experiments

record-gpu:  ## run the full presets that train side by side on JAX, and record them (RECORDS=…)
	@for name in $(RECORDS); do \
	  KERAS_BACKEND=jax $(RECORDER) -m bnkit.experiments run $$name --preset full \
	    --output $(RECORDED) --resume; \
	done

notebooks: $(INSTALLED)  ## write the table of claims, and the .ipynb beside each chapter, for Colab
	@$(BIN)/python book/claims_table.py
	@url=$$(sed -n 's/^  url: "\(.*\)".*/\1/p' _config.yml); \
	for page in $(CHAPTERS); do \
	  sed "s|^REPOSITORY = \"\"|REPOSITORY = \"$$url\"|" "$$page" \
	  | $(BIN)/jupytext --quiet --from md:myst --to ipynb --update --output "$${page%.md}.ipynb" -; \
	done

check: $(INSTALLED)  ## check format, lint, types, spelling, and that chapters and notebooks are in step
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest --quiet tests/book

clean:  ## drop everything that was built; keep .venv and the data
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find bnkit book tests -name __pycache__ -prune -exec rm -rf {} +
