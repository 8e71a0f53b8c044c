#!/bin/sh
# Says how large the drivers are in a guest: bytes of code (.text) and of constants (.rodata), optimised for size and linked as
# one (profile `size`), for each device type, and for virtio-drivers' own drivers in the same guest. What the guest has without
# any driver (drivers/size/src/platform.rs) is taken off; the first line says how much that is.
#
#   scripts/size.sh [GUEST...]      GUEST is a feature of drivers/size, or several with commas between
set -eu
cd "$(dirname "$0")/.."
out=${CARGO_TARGET_DIR:-target}
built=$out/x86_64-unknown-none/size/vringlet-size
[ $# != 0 ] || set -- blk rng pmem net gpu sound blk,rng,pmem,net,gpu,sound \
    stock-blk stock-rng stock-net stock-gpu stock-sound stock-blk,stock-rng,stock-net,stock-gpu,stock-sound

# Code and constants of the guest with features $1.
measure() {
    scripts/guest-cargo.sh build --quiet --profile size -p vringlet-size --features "$1"
    size -A "$built" | awk '/^\.text/ { text += $2 } /^\.rodata/ { constants += $2 } END { print text, constants }'
}

line() { printf '%-60s %8d %8d\n' "$@"; }

bare=$(measure "")
printf '%-60s %8s %8s\n' "bytes of" code constants
# shellcheck disable=SC2086
line "(the guest without a driver)" $bare
for guest; do
    echo "$guest" "$bare" "$(measure "$guest")"
done | while read -r guest bare_code bare_constants code constants; do
    line "$guest" $((code - bare_code)) $((constants - bare_constants))
done
