# What people type. Each target is a thin call; the work is in stack/, tests/ and bench/.
SHELL := /bin/bash
RELEASE := build/release

.PHONY: help up down status logs build test unit spec jobs api faults soak fuzz fuzz-api bench lint format clean

help:
	@echo "make up       build, start private stores, migrate, seed the demo shop, serve"
	@echo "make down     stop what make up started"
	@echo "make status   what runs; make logs follows the logs"
	@echo "make test     every test on stores of its own (unit, spec, jobs, api, faults, fuzz: one kind alone)"
	@echo "make fuzz-api requests made from the API document for ten minutes (FUZZ_SECONDS=60: one)"
	@echo "make soak     the long forms of the tests"
	@echo "make bench    the table of speeds"
	@echo "make lint     clang-format, clang-tidy, luacheck; make format writes the form"
	@echo "make build    the release build alone; make clean removes all builds"

up:
	@stack/up

down:
	@stack/down

status:
	@stack/status || true

logs:
	@tail -n 50 -F var/log/serve.log var/log/work.log

build:
	@stack/install --run
	@cmake -S . -B $(RELEASE) -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@ninja -C $(RELEASE)

test:
	@tests/run

unit spec jobs api faults fuzz:
	@tests/run $@

fuzz-api:
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} FUZZ_SEED=$${FUZZ_SEED:-$$RANDOM} tests/run fuzz-api

soak:
	@tests/run --long

bench:
	@stack/install --bench
	@$(MAKE) --no-print-directory build
	@bench/run

lint:
	@tests/lint

format:
	@clang-format-14 -i $$(git ls-files --cached --others --exclude-standard 'core/**/*.[ch]' 'core/*.[ch]' 'tests/**/*.[ch]' | sort -u)

clean:
	@rm -rf build
