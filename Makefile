# The house's commands. In: a clean clone, Python >= 3.11, a Rust toolchain, a C compiler. Out: .venv with everything
# installed, the engine built, and what the target says. Nothing outside this folder is touched, except that `nasm`
# (the assembler that libjpeg-turbo and dav1d need) and `nginx` (a server that tests read from) are installed with
# apt-get where they are missing and we are root; `test-aarch64` does so with a compiler and an emulator.

PYTHON ?= python3
VENV   ?= .venv
STEPS  ?= 1500
DEMO   ?= runs/demo

BIN    := $(VENV)/bin
PY     := $(BIN)/python
UV     := $(BIN)/uv pip install --python $(PY) --quiet
RUST   := $(shell find jpeg_rs/src packer_rs/src -name '*.rs' 2>/dev/null) jpeg_rs/Cargo.toml packer_rs/Cargo.toml Cargo.toml Cargo.lock
# cmake, meson and ninja come from .venv; pyo3's build script finds .venv's Python first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1
# Torch's idle threads must not spin on cores that the decoding threads need.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-whole test-rust test-python test-aarch64 check docs bench bench-quick gpu-kit wheel wheel-aarch64 sdist test-wheel build clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: build  ## digits -> index -> daemon -> training over ZeroMQ -> table and report
	@$(PY) examples/demo.py --out $(DEMO) --steps $(STEPS)

test: test-rust test-python  ## cargo tests, then pytest with hypothesis; of the slow ones a fourth

test-whole: WHOLE := --whole
test-whole: test-rust test-python  ## the same with all of the slow ones

test-rust: $(VENV)/.deps
	@if command -v cargo-nextest >/dev/null; then cargo nextest run --workspace --locked --no-tests=pass \
		&& cargo test --workspace --locked --doc; else cargo test --workspace --locked; fi

# Two at a time, each file in one process: many tests wait for processes and clocks of their own. Clusters by themselves.
test-python: build $(VENV)/.dali
	@$(PY) -m pytest -n 2 --dist loadfile -m "not cluster" $(WHOLE)
	@$(PY) -m pytest -m cluster $(WHOLE) || [ $$? = 5 ]  # 5: none is left where Ray is not installed

# Debian's own compiler has a standard library for Arm; rustup's does as well, where its servers can be reached. The plan alone
# is built, and what it needs without optimising: most of the time would go there.
ARM    := aarch64-unknown-linux-gnu
ARMRUN := CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64

test-aarch64: $(VENV)/.deps  ## the plan's digests on an emulated Arm processor; as root on Debian it installs what it needs
	@[ -e /usr/lib/rustlib/$(ARM) ] && command -v qemu-aarch64 aarch64-linux-gnu-gcc >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing a compiler and an emulator for $(ARM) ..."; dpkg --add-architecture arm64 && apt-get update -qq && \
			apt-get install -y -qq --no-install-recommends rustc-web libstd-rust-web-dev:arm64 qemu-user gcc-aarch64-linux-gnu \
				libc6-dev-arm64-cross >/dev/null; \
		else echo "for $(ARM) install, on Debian: rustc-web libstd-rust-web-dev:arm64 qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2; exit 1; fi; }
	@RUSTC=/usr/bin/rustc $(ARMRUN) cargo test --quiet --locked --target $(ARM) --target-dir target/aarch64 \
		-p navit-packer --no-default-features --config 'profile.dev.package."*".opt-level=0' --test plan_digest

check: build  ## formatters, linters, types, the walls between rooms, the stub against the binary, and the site's links
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --all-targets --locked --features python -- -D warnings
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(BIN)/lint-imports
	$(PY) -m mypy.stubtest navit_loader._packer
	$(DOCS)

# It says that MkDocs has a successor, at every build.
DOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

docs: build  ## the documentation's site in runs/site, which needs no server; a link that leads nowhere is an error
	@$(DOCS)
	@echo "runs/site/index.html"

bench: $(VENV)/.peers  ## bench/README.md anew, on this machine: up to three hours; what has a result of this commit is kept
	@$(PY) bench/run.py

bench-quick: $(VENV)/.peers  ## the same rows at small sizes in three minutes: does every one run?
	@$(PY) bench/run.py --quick --again

gpu-kit: $(VENV)/.peers  ## dist/gpu: what bench/gpu.py needs on a GPU machine without a network
	@$(PY) bench/gpu_kit.py

# Another glibc's wheel needs no engine here, so none is built. With a processor to itself it takes some nine minutes.
wheel: $(VENV)/.release  ## dist/: the wheel for Linux on this processor as it is published, checked
	@$(PY) release/manylinux.py

wheel-aarch64: $(VENV)/.release  ## dist/: the wheel for Linux on Arm, from this machine; needs what test-aarch64 installs
	@[ -e /usr/lib/rustlib/$(ARM) ] || { echo "no standard library of Rust for $(ARM): make test-aarch64 installs it" >&2; exit 1; }
	@RUSTC=/usr/bin/rustc $(PY) release/manylinux.py --machine aarch64

sdist: $(VENV)/.release  ## dist/: the sources, from which `pip install` builds
	@rm -rf licences
	@$(BIN)/maturin sdist --out dist

test-wheel:  ## installs dist/'s wheel without compilers and runs what needs no model, as root also as another user
	@$(PYTHON) release/try_wheel.py

build: $(VENV)/.built  ## the Python environment and the engine, release profile

clean:  ## removes what the targets made
	rm -rf $(VENV) target runs dist licences .mypy_cache .ruff_cache .pytest_cache .hypothesis navit_loader/_packer*.so

# --- how `build` comes about; each stamp stands for one step -------------------------------------------------------

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "navit needs Python >= 3.11, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -1); say: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments; install them first, on Debian: apt-get install python3-venv" >&2; exit 1; }
	@command -v cargo >/dev/null || { \
		echo "navit's engine is written in Rust, and no 'cargo' is on PATH; install a Rust toolchain >= 1.89 first" >&2; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || { \
		echo "no C compiler is on PATH; install one first, on Debian: apt-get install gcc" >&2; exit 1; }
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(VENV)/.deps: $(VENV)/.made pyproject.toml
	@echo "installing Python packages into $(VENV) (torch is the large one) ..."
	@$(UV) -r pyproject.toml --extra demo
	@$(UV) --group build --group test --group check --group docs
	@case "$$(uname -m)" in x86_64|amd64) command -v nasm >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing nasm ..."; apt-get update -qq && apt-get install -y -qq nasm >/dev/null; \
		else echo "libjpeg-turbo and dav1d need the assembler 'nasm'; install it first, on Debian: apt-get install nasm" >&2; exit 1; fi; };; esac
	@command -v nginx >/dev/null || test -x /usr/sbin/nginx || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing nginx ..."; { apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light >/dev/null; } \
			|| echo "nginx cannot be installed; the tests that need it will be skipped" >&2; fi; }
	@touch $@

# Only the tests need it: some 600 MB.
$(VENV)/.dali: $(VENV)/.deps
	@echo "installing NVIDIA DALI into $(VENV) ..."
	@$(UV) -r pyproject.toml --extra dali
	@touch $@

$(VENV)/.release: $(VENV)/.made pyproject.toml
	@$(UV) --group release
	@touch $@

# What the benchmarks stand beside.
$(VENV)/.peers: $(VENV)/.built $(VENV)/.dali pyproject.toml
	@$(UV) --group bench
	@touch $@

$(VENV)/.built: $(VENV)/.deps $(RUST)
	@echo "building the engine (release) ..."
	@$(BIN)/maturin develop --release --uv --quiet --locked
	@touch $@
