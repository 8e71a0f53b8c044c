#!/bin/sh
# The guest is built by one of two toolchains. What both are told is in .cargo/config.toml, what differs is in
# scripts/guest-cargo.sh, and nothing of either may be anywhere else: a flag in a second place is one that the other
# toolchain does not get.
set -eu
cd "$(dirname "$0")/.."
status=0

# $1: a pattern; $2: what it stands for; $3...: the only files that may have it, and that do. Prose may name it, and a
# crate's build script may pass on its own linker script, as both toolchains run that.
only_in() {
    pattern=$1 name=$2
    shift 2
    for file; do
        grep -Eq -e "$pattern" "$file" || { echo "$file has no $name: is this check out of date?" >&2; status=1; }
        set -- "$@" ":(exclude)$file"
        shift
    done
    if git grep -nE -e "$pattern" -- . ':(exclude)*.md' ':(exclude)*/build.rs' ':(exclude)scripts/check-flags.sh' "$@" >&2
    then
        echo "^ $name belongs in one place" >&2
        status=1
    fi
}

both=.cargo/config.toml
differs=scripts/guest-cargo.sh
only_in 'build-std|RUSTC_BOOTSTRAP' "difference between the toolchains" $differs
only_in '--target[ =]|CARGO_BUILD_TARGET' "choice of the guest's target" $differs
only_in 'relocation-model|force-frame-pointers|code-model|target-cpu|target-feature|link-arg' "flag for the guest" $both
only_in 'RUSTFLAGS' "taking back of flags from the environment" $differs
exit $status
