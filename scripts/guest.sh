#!/bin/sh
# Builds target/guest.elf: the kernel, then the loader with the kernel inside. `scripts/guest.sh FILE FEATURES` builds another
# file, of a kernel with these features.
set -eu
cd "$(dirname "$0")/.."
file=${1:-target/guest.elf}
features=${2-}
out=${CARGO_TARGET_DIR:-target}
case $out in /*) ;; *) out=$PWD/$out ;; esac
built=$out/x86_64-unknown-none/release

scripts/guest-cargo.sh build --release -p vringlet-kernel ${features:+--features "$features"}
kernel=$built/vringlet-kernel
if [ -n "$features" ]; then
    # Cargo knows a changed kernel by its name and date, and what it built before of these features has an old one.
    kernel=$built/vringlet-kernel-$features
    cmp -s "$built/vringlet-kernel" "$kernel" || cp "$built/vringlet-kernel" "$kernel"
fi
VRINGLET_KERNEL=$kernel scripts/guest-cargo.sh build --release -p vringlet-boot

# A new file by rename: a guest that is being started reads the old one or the new one, never half of it.
mkdir -p "$(dirname "$file")"
cp "$built/vringlet-boot" "$file.new"
mv "$file.new" "$file"
