#!/bin/sh
# Builds the driver crate for machines other than the guest's, as another kernel would have it: that it compiles for
# them, barriers and register accesses in assembly language included. The toolchain is that of the guest.
#
#   scripts/check-targets.sh [TARGET...]
set -eu
cd "$(dirname "$0")/.."
[ $# != 0 ] || set -- aarch64-unknown-none armv7a-none-eabi riscv32imac-unknown-none-elf riscv64gc-unknown-none-elf

for target; do
    echo "driver crate for $target"
    # link-dead-code has code made of functions that nothing here calls, so that their assembly is looked at.
    scripts/guest-cargo.sh --for "$target" rustc --quiet -p vringlet --lib -- -C link-dead-code
done
