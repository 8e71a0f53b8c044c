#!/bin/sh
# Runs cargo for the guest (boot/ and kernel/, target x86_64-unknown-none), or for another bare machine that the driver
# crate is to work on, with whichever toolchain can build it:
#
#   rustup   the ordinary one, when it has the target's precompiled core and alloc;
#   debian   the distribution's, which builds them from its own source package (-Zbuild-std).
#
# Both build the same sources with the same flags, which are in .cargo/config.toml. What differs between the two is
# in this file and nowhere else (.ci/run checks that).
#
#   scripts/guest-cargo.sh build --release -p vringlet-kernel
#   scripts/guest-cargo.sh --for riscv64gc-unknown-none-elf build -p vringlet
#   scripts/guest-cargo.sh --which      prints `rustup`, `debian` or `none`
set -eu
target=x86_64-unknown-none
oldest=1.93
if [ "${1-}" = --for ]; then
    target=${2:?a target of rustc}
    shift 2
fi

# Is version $1 at least $2?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

which_toolchain() {
    libraries=$(rustc --print target-libdir --target $target 2>/dev/null) || libraries=
    if [ -n "$libraries" ] && ls "$libraries"/libcore-*.rlib >/dev/null 2>&1; then
        echo rustup
    elif [ -x /usr/bin/cargo ] && version=$(/usr/bin/rustc --version 2>/dev/null | cut -d' ' -f2) \
        && at_least "$version" $oldest \
        && [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs" ]; then
        echo debian
    else
        echo none
    fi
}

# Flags from the environment would replace those of .cargo/config.toml, and the guest does not boot without them.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS

toolchain=$(which_toolchain)
command=${1-}
[ $# = 0 ] || shift
case "$command $toolchain" in
--which*)
    echo "$toolchain"
    ;;
*rustup)
    exec cargo "$command" --target $target "$@"
    ;;
*debian)
    # Debian's cargo must find Debian's rustc, and core is built by stable's own compiler only under this variable.
    export PATH=/usr/bin:/bin RUSTC_BOOTSTRAP=1
    exec cargo "$command" --target $target -Zbuild-std=core,alloc -Zbuild-std-features=compiler-builtins-mem "$@"
    ;;
*)
    echo "no toolchain for $target: run \`make setup\`, or \`rustup target add $target\`" >&2
    exit 1
    ;;
esac
