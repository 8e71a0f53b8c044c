#!/bin/sh
# Runs the QEMU cells, or those whose name contains CELL, N times while two programs keep processors busy, and tells which
# cell failed how often: `scripts/soak.sh N [CELL]`. Nothing is tried again. The output of runs that failed, and what
# their cells left, are kept in target/soak/. The status is 0 if nothing failed.
#
# The test program is taken as it is now: what is built from the sources later does not come in between.
set -eu
cd "$(dirname "$0")/.."
usage() {
    echo "usage: scripts/soak.sh N [CELL]" >&2
    exit 2
}
runs=${1-}
cell=${2-}
case $runs in '' | 0 | *[!0-9]*) usage ;; esac

scripts/guest.sh
built=$(cargo test -p vringlet-tests --test matrix --no-run --message-format json-render-diagnostics |
    sed -n '/"name":"matrix"/s/.*"executable":"\([^"]*\)".*/\1/p')
[ -x "$built" ] || { echo "no test program was built" >&2; exit 2; }
kept=$PWD/target/soak
rm -rf "$kept"
mkdir -p "$kept"
cp "$built" "$kept/matrix"

hogs=
quiet() {
    # By their own process ids, which are no one else's as long as they were not waited for.
    for hog in $hogs; do kill "$hog" 2>/dev/null || true; done
    for hog in $hogs; do wait "$hog" 2>/dev/null || true; done
    hogs=
}
trap quiet EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for _ in 1 2; do
    # Should this shell be killed, they end as well.
    setpriv --pdeathsig KILL sh -c 'while :; do :; done' &
    hogs="$hogs $!"
done

run=0
bad=0
passed=0
while [ "$run" -lt "$runs" ]; do
    run=$((run + 1))
    log=$kept/$run.log
    status=0
    # As cargo runs it: in the folder of its package.
    (cd tests && exec "$kept/matrix" ${cell:+"$cell"}) >"$log" 2>&1 </dev/null || status=$?
    result=$(sed -n 's/^test result: //p' "$log")
    echo "run $run of $runs: ${result:-no result, status $status}"
    case $result in *" 0 passed; 0 failed; 0 ignored;"*)
        echo "no cell's name contains '$cell'" >&2
        exit 2
        ;;
    esac
    count=$(sed -n 's/^test result:.* \([0-9]*\) passed;.*/\1/p' "$log")
    passed=$((passed + ${count:-0}))
    # A program that ended without a word of its cells has not passed.
    if [ "$status" = 0 ] && [ -n "$result" ]; then
        rm "$log"
        continue
    fi
    bad=$((bad + 1))
    sed -n 's/^test \(.*[^ ]\) *\.\.\. FAILED$/\1/p' "$log" >>"$kept/failed"
    # The next run of a cell clears what this one left.
    if [ -d target/cells ]; then mv target/cells "$kept/$run.cells"; fi
done

echo
echo "$runs runs: $passed cells passed; $bad runs failed"
if [ -s "$kept/failed" ]; then
    sort "$kept/failed" | uniq -c | sort -rn | while read -r times name; do
        echo "  $name failed $times of $runs times"
    done
fi
rm -f "$kept/matrix"
[ "$bad" = 0 ] || { echo "logs: target/soak/"; exit 1; }
