#!/bin/sh
# Runs the host's unit tests and all QEMU cells, or, with an argument, only the cells whose name contains it. The last
# line is `N passed, N failed`.
set -u
cd "$(dirname "$0")/.."
cell=${1-}
started=$(date +%s)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Runs a cargo command, shows what it prints as it comes, and keeps it to count what passed.
run() {
    echo "\$ $*"
    { "$@" 2>&1; echo $? >"$work/status"; } | tee -a "$work/log"
    [ "$(cat "$work/status")" = 0 ] || touch "$work/failed"
}

if [ -z "$cell" ]; then
    run cargo test --no-fail-fast -p vringlet --all-features
    run cargo test --no-fail-fast -p vringlet-boot -p vringlet-kernel -p vringlet-tests --lib
    run cargo test --no-fail-fast -p vringlet-bench
    run cargo test -p vringlet-tests --test ext
fi
run cargo test -p vringlet-tests --test matrix -- ${cell:+"$cell"}

# `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, once for each program.
count() { sed -n "s/^test result:.* \([0-9]*\) $1;.*/\1/p" "$work/log" | awk '{ sum += $1 } END { print sum + 0 }'; }
passed=$(count passed)
failed=$(count failed)
ignored=$(count ignored)
if [ -e "$work/failed" ] && [ "$failed" = 0 ]; then
    echo "a test program could not be built or run"
    failed=1
elif [ "$passed" = 0 ] && [ "$failed" = 0 ]; then
    echo "no cell's name contains '$cell'"
    failed=1
fi
[ "$ignored" = 0 ] || echo "$ignored not run here; each says why above"
echo "took $(($(date +%s) - started)) s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
