# A thin layer over meson, ninja and the scripts: `make help`. Nothing here is needed where make is not installed: ./demo and
# ./check do everything themselves.
BUILD ?= build
FUZZ_SECONDS ?= 60
CLANG ?= clang
C_FILES = $(shell git ls-files 'src/*.[ch]' 'tests/*.[ch]')

.PHONY: help build check check-lab endurance demo bench lab-shell format tidy asan tsan fuzz install clean

help:
	@echo 'make build      build the program and its tests, in $(BUILD)/'
	@echo 'make check      all tests: unit tests, golden streams, fuzz corpora, the system tests in the lab (./check)'
	@echo 'make check-lab  only the system tests in the lab'
	@echo 'make endurance  1000 updates of one guest in a row (tests/endurance COUNT: another number)'
	@echo 'make demo       see the point of it (./demo)'
	@echo 'make bench      how long a guest stands still in an update: baton, QEMU, and the least possible, in one run'
	@echo 'make lab-shell  a shell in the lab machine, with an NVMe drive to pass through'
	@echo 'make format     clang-format, in place; make format-check only says what differs'
	@echo 'make tidy       clang-tidy over src/'
	@echo 'make asan       unit tests, golden streams and fuzz corpora under address and undefined-behaviour sanitizers'
	@echo 'make tsan       the same under the thread sanitizer (system tests: ./check --sanitize address|thread)'
	@echo 'make fuzz       every fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS)) of processor time (tests/fuzz/run); needs clang'
	@echo 'make install    meson install (DESTDIR=... works)'
	@echo 'make clean      remove the build directories'

$(BUILD)/build.ninja:
	meson setup $(BUILD)

build: $(BUILD)/build.ninja
	ninja -C $(BUILD)

check:
	./check

check-lab:
	./check --system

endurance:
	tests/endurance

demo:
	./demo

bench:
	bench/bench

lab-shell:
	lab/shell --device nvme

format:
	clang-format -i $(C_FILES)

.PHONY: format-check
format-check:
	clang-format --dry-run $(C_FILES)

tidy: $(BUILD)/build.ninja
	ninja -C $(BUILD) src/boot/dsdt.h
	clang-tidy --quiet -p $(BUILD) $(shell git ls-files 'src/*.c')

asan:
	./check --unit --sanitize address

tsan:
	./check --unit --sanitize thread

fuzz:
	CLANG=$(CLANG) tests/fuzz/run $(FUZZ_SECONDS)

install: build
	meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf build build-*
