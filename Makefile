# Each target does its own set-up: all it needs is make and Python 3.11 or newer.
#     make tutorial                  every notebook in the class profile, then the index page
#     make test                      unit tests, notebooks in the smoke profile, nbval
# Another interpreter: make test PYTHON=python3.12
# The parts of `make tutorial` can be chosen: make tutorial PROFILE=smoke NOTEBOOKS="01 02"

PYTHON ?= python3
VENV ?= .venv
PROFILE ?= class
RUN_FOLDER ?= runs/$(PROFILE)
NOTEBOOKS ?=
COURSE := build/course

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
COMMITTED := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
# Held-out phantoms, named after how many there are of each modality.
GATE_PHANTOMS := build/gates/phantoms1000/manifest.csv
RECORD_PHANTOMS := build/gates/phantoms5000/manifest.csv
# Snakemake asks for older versions of packages than are pinned: it has an environment of its own.
SNAKEMAKE := build/snakemake
TARGET ?= all
# GNU make 4; that of macOS is older, and mixes the lines of two jobs.
IN_LINES := $(if $(filter output-sync,$(.FEATURES)),--output-sync=line)
CHOSEN := $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS))

.PHONY: help environment tutorial test unit smoke nbval lint weights gates record results notebooks \
  student workflow clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5
	@echo "Targets: environment tutorial test unit smoke nbval lint weights gates record results notebooks student workflow clean"

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "medsign_lite needs Python 3.11 or newer; $(PYTHON) is" "$$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	@touch $@

tutorial: $(STAMP)
	$(PY) -m medsign_lite.tutorial --profile $(PROFILE) --run-folder $(RUN_FOLDER) $(CHOSEN)

# Two at a time with one thread each: networks this small gain little from a second one.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 $(IN_LINES) nbval unit smoke

unit: $(STAMP)
	$(PY) -m pytest

smoke: $(STAMP)
	$(PY) -m medsign_lite.tutorial --profile smoke --run-folder build/smoke --force

# The committed outputs are those of the default profile, so this is the class profile once more.
nbval: $(STAMP)
ifeq ($(COMMITTED),)
	@echo "nbval: there is no notebook to check"
else
	$(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=1800 \
	  --nbval-kernel-startup-timeout=180 -W default $(COMMITTED)
endif

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check --exclude '*.ipynb' .

weights: build/phantoms/manifest.csv $(STAMP)
	$(PY) -m medsign_lite.bundle --data $<

build/phantoms/manifest.csv: | $(STAMP)
	$(PY) -m data_prep.phantoms --out $(@D) --train 10000 --validation 500 --test 500

gates: $(GATE_PHANTOMS) $(STAMP)
	$(PY) -m medsign_lite.records.gates --data $<

# The recorded figures, from 500 images of each modality; goes on where it was if it is killed.
record: $(RECORD_PHANTOMS) $(STAMP)
	$(PY) -m medsign_lite.records.gates --data $< --record --images 500

# Everything under results/ that is not of these weights, in order, for hours; goes on likewise.
# What is current, and the command of each: .venv/bin/python -m medsign_lite.recorded --list
results: $(RECORD_PHANTOMS) $(STAMP)
	$(PY) -m medsign_lite.recorded --data $<

build/gates/phantoms%/manifest.csv: | $(STAMP)
	$(PY) -m data_prep.phantoms --out $(@D) --train 300 --validation 0 --test $*

# Executes the notebooks as they are committed (class profile) and writes their outputs back.
notebooks: $(STAMP)
	$(PY) -m medsign_lite.tutorial --in-place $(CHOSEN)

# The student's edition, without solutions and hidden tests, in build/course/release/.
student: $(STAMP)
	rm -rf $(COURSE)/source $(COURSE)/release  # what was handed in stays
	mkdir -p $(COURSE)/source/medsign_lite
	cp $(COMMITTED) $(COURSE)/source/medsign_lite/
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m nbgrader generate_assignment medsign_lite \
	  --create --force --course-dir="$(CURDIR)/$(COURSE)"  # nbgrader looks for alembic in PATH
	@echo "The student's notebooks are in $(COURSE)/release/medsign_lite/"

# workflow/config.yaml: the tutorial and a sweep, two jobs at a time; also TARGET=tutorial or sweep.
workflow: $(STAMP) $(SNAKEMAKE)/.installed
	$(SNAKEMAKE)/bin/snakemake --profile workflow/profiles/local $(TARGET) \
	  --config python="$(abspath $(PY))"

$(SNAKEMAKE)/.installed: | $(STAMP)
	$(PYTHON) -m venv --clear $(SNAKEMAKE)
	$(SNAKEMAKE)/bin/python -m pip install --quiet "snakemake>=9.0"
	@touch $@

# Run folders hold results and stay; remove runs/ yourself.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
