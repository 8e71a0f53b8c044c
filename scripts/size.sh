#!/bin/sh
# Says how large the drivers are in a guest: bytes of code (.text) and of constants (.rodata), optimised for size and linked as
# one (profile `size`), for each device type, and for virtio-drivers' own drivers in the same guest. What the guest has without
# any driver (drivers/size/src/platform.rs) is taken off; the first line says how much that is.
#
#   scripts/size.sh [GUEST...]      GUEST is a feature of drivers/size, or several with commas between
#   scripts/size.sh --check         fails if `blk` has grown
set -eu
cd "$(dirname "$0")/.."
out=${CARGO_TARGET_DIR:-target}
built=$out/x86_64-unknown-none/size/vringlet-size

# What `blk` may have of the code of virtio-drivers' own driver, in per cent. It has 343. Bytes would depend on the compiler;
# both drivers are built by the same one here, from the versions in Cargo.lock, so nothing but a change of ours moves this.
most=360

# Code and constants of the guest with features $1.
measure() {
    scripts/guest-cargo.sh build --quiet --profile size -p vringlet-size --features "$1" >&2
    size -A "$built" | awk '/^\.text/ { text += $2 } /^\.rodata/ { constants += $2 } END { print text, constants }'
}

# The same, without what the guest has of its own.
driver() {
    whole=$(measure "$1")
    echo $((${whole% *} - ${bare% *})) $((${whole#* } - ${bare#* }))
}

line() { printf '%-56s %8s %9s\n' "$@"; }

bare=$(measure "")

if [ "${1-}" = --check ]; then
    ours=$(driver blk)
    stock=$(driver stock-blk)
    part=$((${ours% *} * 100 / ${stock% *}))
    echo "blk: ${ours% *} bytes of code, $part % of the ${stock% *} of virtio-drivers' own; $most % are allowed"
    [ $part -le $most ]
    exit
fi

[ $# != 0 ] || set -- blk rng pmem net gpu sound blk,rng,pmem,net,gpu,sound \
    stock-blk stock-rng stock-net stock-gpu stock-sound stock-blk,stock-rng,stock-net,stock-gpu,stock-sound
line "bytes of" code constants
line "(the guest without a driver)" "${bare% *}" "${bare#* }"
for guest; do
    sizes=$(driver "$guest")
    line "$guest" "${sizes% *}" "${sizes#* }"
done
