# SPDX-License-Identifier: GPL-2.0-only
# make run    monitor a bundled workload and show what was found next to what is true
# make run PID=1234    monitor that process
# make test   run all tests        make lint   ruff, mypy, layers
# make bench  print benchmarks     make clean  remove what this made
# make bench BENCH=list            their names; BENCH=kdamond runs one of them
# make bench BENCH=kdamond AGAINST=COMMIT    compare with an earlier commit; so do faults and start
# make test-kernel KERNEL=7.3    run tests on another kernel (6.12, 7.2, 7.3), in QEMU, as root
# make test-kernel KERNEL=7.3 TESTS="tests/mm/sampling -k page_fault"    these tests
# make test-kernel KERNEL=7.3 RUN="python3 -m kdamon_tools doctor"       a command in their place
# Each of them sets the machine up first, in .venv.

VENV := .venv
SECONDS_TO_RUN ?= 15
BUILD := build
PYTEST_ARGS ?=
BENCH ?=
AGAINST ?=
KERNEL ?=
TESTS ?=
export RUN ?=
KERNEL_ARGS ?=

READY_RUN := $(VENV)/.ready-run
READY_TEST := $(VENV)/.ready-test
WHAT_THEY_NEED := pyproject.toml .ci/setup
TRUTH := $(BUILD)/truth.jsonl

.PHONY: run test test-kernel lint bench clean
.DELETE_ON_ERROR:

ifdef PID
run: $(READY_RUN)
	@$(VENV)/bin/kdamon run --pid $(PID) $(RUN_ARGS)
else
run: $(READY_RUN)
	@mkdir -p $(BUILD)
	@$(VENV)/bin/kdamon run --truth $(TRUTH) $(RUN_ARGS) -- \
		$(VENV)/bin/python -m kdamon_tools.workloads.stairs --step 2 --seconds $(SECONDS_TO_RUN) --truth $(TRUTH)
	@echo
	@echo "The command is $(CURDIR)/$(VENV)/bin/kdamon. Monitor process PID until Ctrl-C:"
	@echo "    $$([ "$$(id -u)" = 0 ] || echo "sudo ")$(CURDIR)/$(VENV)/bin/kdamon run --pid PID"
endif

test: $(READY_TEST)
	$(VENV)/bin/python tests/run_all.py $(PYTEST_ARGS)

test-kernel: $(READY_TEST)
	@$(VENV)/bin/python -m tests.kernels $(or $(KERNEL),$(error name a release of the kernel: make test-kernel KERNEL=7.3)) \
		$(KERNEL_ARGS) $(if $(RUN),--run "$$RUN") $(if $(TESTS),--tests $(TESTS))

lint: $(READY_TEST)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

bench: $(READY_TEST)
	@$(VENV)/bin/python tests/bench/run_all.py $(BENCH) $(if $(AGAINST),--against $(AGAINST))

clean:
	rm -rf $(VENV) $(BUILD) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Tests and linters come in one environment with what runs; what only runs needs less.
$(READY_RUN): $(WHAT_THEY_NEED)
	@.ci/setup $(VENV)
	@touch $@

$(READY_TEST): $(WHAT_THEY_NEED)
	@.ci/setup $(VENV) test,lint
	@touch $(READY_RUN) $@
