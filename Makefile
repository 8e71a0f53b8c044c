# Two commands on a fresh machine: `make run` and `make test`. Everything else is below.

# What `make run` takes from its caller goes to the run wrapper by the environment.
export MACHINE MEM SMP DISK SOUND PORT SCRIPT CMDLINE ARGS TIMEOUT
# And to the tests.
export KEEP
# And to all that start a guest.
export ACCEL CPU

.PHONY: help setup guest run screenshot test soak budget bench coverage clean

help:
	@echo 'make setup             install what is missing (Rust for the guest, QEMU >= 8.2); quick when nothing is'
	@echo 'make guest             build target/guest.elf, the file for `qemu-system-x86_64 -kernel`'
	@echo 'make run               boot it with a disk, a network, a screen, sound, persistent memory and the serial console'
	@echo '                       here; Ctrl-A X ends it'
	@echo '                       without a terminal: a tour of everything, then power-off; the exit status tells'
	@echo '  MACHINE=q35|pc|microvm|microvm,pcie=on    MEM=256M    SMP=1'
	@echo '  ACCEL=auto|kvm|tcg   what executes its instructions: the processor (KVM) where that works, or QEMU'"'"'s emulation'
	@echo '  CPU=host             the processor that the guest sees, in QEMU'"'"'s words'
	@echo '  DISK=file            your own raw or qcow2 image; it is never created over or truncated'
	@echo '  SOUND=wav            an audio system of QEMU'"'"'s: pipewire, pa, alsa, wav (to target/sound.wav), none'
	@echo '  PORT=8080            the host port that leads to the guest'"'"'s web page'
	@echo '  SCRIPT="commands"    shell commands to run after boot, separated by ;'
	@echo '  CMDLINE="options"    the guest'"'"'s command line, such as log=debug'
	@echo '  ARGS="arguments"     more QEMU arguments'
	@echo 'make screenshot        what the guest of `make run` shows, to target/screenshot.png'
	@echo 'make test              host unit tests and all QEMU cells, each judged from outside the guest'
	@echo 'make test CELL=name    only the cells whose name contains it'
	@echo '  ACCEL= CPU=          what the cells run on: tcg unless said; those about KVM try it by themselves'
	@echo '  KEEP=1               keep logs and captures of cells that pass, too, in target/cells/'
	@echo 'make soak N=10 CELL=   the cells N times while two programs keep processors busy: which failed how often;'
	@echo '                       the logs of what failed are in target/soak/'
	@echo 'make budget            counts guest instructions, kicks, interrupts and exits, and fails where bench/budget.toml has less'
	@echo '  RECORD=1             writes what is counted into that file'
	@echo 'make bench             this guest, a Linux guest and others do the same work in turn; bench/RESULTS.md is what came of it'
	@echo '  QUICK=1              less of it, in target/bench/RESULTS.md; ONLY=word, then, what has it in its title'
	@echo 'make coverage          which lines of the driver crate its tests on the host run, per file and in all'
	@echo 'make clean             remove what was built'

setup:
	@scripts/setup.sh

guest: setup
	@scripts/guest.sh

run: guest
	@cargo run --quiet -p vringlet-tests --bin vringlet-run

screenshot:
	@cargo run --quiet -p vringlet-tests --bin vringlet-screenshot

test:
	@scripts/setup.sh tests
	@scripts/guest.sh
	@scripts/test.sh '$(CELL)'

N ?= 10
soak:
	@scripts/setup.sh tests
	@scripts/soak.sh '$(N)' '$(CELL)'

RECORD ?=
budget:
	@scripts/setup.sh
	@scripts/guest.sh
	@cargo run --quiet -p vringlet-bench -- $(if $(RECORD),record,budget)

QUICK ?=
ONLY ?=
bench:
	@scripts/setup.sh
	@cargo run --quiet -p vringlet-bench -- compare $(if $(QUICK),quick $(ONLY))

coverage:
	@scripts/setup.sh coverage
	@scripts/coverage.sh

clean:
	cargo clean
