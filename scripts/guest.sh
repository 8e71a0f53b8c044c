#!/bin/sh
# Builds target/guest.elf: the kernel, then the loader with the kernel inside.
set -eu
cd "$(dirname "$0")/.."
out=${CARGO_TARGET_DIR:-target}
case $out in /*) ;; *) out=$PWD/$out ;; esac
built=$out/x86_64-unknown-none/release

scripts/guest-cargo.sh build --release -p vringlet-kernel
VRINGLET_KERNEL=$built/vringlet-kernel scripts/guest-cargo.sh build --release -p vringlet-boot

# A new file by rename: a guest that is being started reads the old one or the new one, never half of it.
mkdir -p target
cp "$built/vringlet-boot" target/guest.elf.new
mv target/guest.elf.new target/guest.elf
