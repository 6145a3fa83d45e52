VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c config/constraints.txt

# The tests that `make test` runs, and the processes that run them: most tests wait most of the time.
MARK    := not long
TESTERS := $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))
# If this is set, each process compiles each module and each test again.
unexport PYTHONDONTWRITEBYTECODE

MERMAID := 11.17.2# of the major version that the theme expects

help:          ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

serve: $(VENV)/.serve  ## set up what is missing, then run the mirror (ARGS="--listen :5001" ...)
	@$(BIN)/mirror serve $(ARGS)

test: $(VENV)/.dev     ## the tests, but for the long ones, in five minutes (all: MARK=)
	$(BIN)/pytest --numprocesses=$(TESTERS) --dist=loadfile -m "$(MARK)" $(ARGS)

quick:                 ## the tests that start no programs, in a minute
	@# These tests wait for nothing: more processes than cores only collect the tests more often.
	@$(MAKE) --no-print-directory test MARK="not e2e and not slow and not long" \
	    TESTERS=$$(getconf _NPROCESSORS_ONLN)

check: $(VENV)/.dev    ## everything CI checks: format, lint, types, import rules, all tests, coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test MARK= ARGS="--cov --cov-report=term $(ARGS)"

fuzz: $(VENV)/.dev     ## three minutes of what no client or upstream should send (ARGS="--minutes 10")
	$(BIN)/python -m tools.fuzz $(ARGS)

soak: $(VENV)/.dev     ## ten minutes of 300 clients, faults and eviction (ARGS="--minutes 3")
	$(BIN)/python -m tools.soak $(ARGS)

conformance: $(VENV)/.dev  ## the OCI distribution spec's own tests; needs Go and docker-registry
	$(BIN)/python -m tools.conformance

bench: $(VENV)/.dev    ## beside docker-registry and nginx, in 25 minutes (ARGS="--only small,large-1")
	$(BIN)/python -m tools.bench $(ARGS)

docs: $(VENV)/.dev docs/assets/mermaid.tiny.js  ## the documentation as a site, in build/site
	@# In CI the reference is not written, so that a test sees whether it was committed.
	$(if $(CI),,$(BIN)/python -m tools.configuration_reference)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file config/mkdocs.yml

docs/assets/mermaid.tiny.js:
	@mkdir -p build docs/assets
	@npm pack --silent --pack-destination build @mermaid-js/tiny@$(MERMAID) >build/mermaid.log 2>&1 && \
	    tar -xzOf build/mermaid-js-tiny-$(MERMAID).tgz package/dist/mermaid.tiny.js >$@ || \
	    { rm -f $@; echo "make: npm cannot get Mermaid: browsers load it from the theme's CDN" >&2; }

package: $(VENV)/.serve  ## the Debian package, in dist
	$(PIP) uv
	$(BIN)/python -m tools.package $(ARGS)

screenshots: $(VENV)/.dev  ## pictures of the status page, into config/screenshots
	$(BIN)/python -m tools.screenshots $(ARGS)

fix: $(VENV)/.dev      ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:         ## remove the environment and everything generated
	rm -rf $(VENV) .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* build dist docs/assets
	find mirror tests tools -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed: apt-get install python3" >&2; exit 1; }
	@python3 -m venv $(VENV) >/dev/null || { rm -rf $(VENV); echo "make: Python cannot make an environment: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.serve: $(BIN)/python pyproject.toml config/constraints.txt
	@echo "make: installing the mirror into $(VENV), once (about a minute)" >&2
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml config/constraints.txt
	@echo "make: installing the mirror and what its tests need into $(VENV), once (a few minutes)" >&2
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.serve

.PHONY: help serve test quick check fuzz soak conformance bench docs package screenshots fix clean
