#!/bin/sh
# Installs what Vringlet needs and this machine lacks, saying what it does; quick and quiet when nothing is missing.
#
#   scripts/setup.sh            what building and running the guest needs
#   scripts/setup.sh tests      and what the tests need besides, or can use
#   scripts/setup.sh ci         and what .ci/run needs besides
#   scripts/setup.sh coverage   the first, and what scripts/coverage.sh needs besides
#
# It uses rustup (unless RUSTUP_AUTO_INSTALL=0) and apt. Where it can't install it names what is needed, and fails.
set -eu
cd "$(dirname "$0")/.."
# What makes and checks file systems is where only root looks.
PATH=$PATH:/usr/sbin:/sbin
qemu_oldest=8.2
rust_oldest=1.93
sound_daemon=0.3.0
rng_daemon=0.1.0

say() { echo "setup: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }
# The version of rustc's LLVM.
llvm() { rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'; }
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

have_host_cargo() { have cargo && version=$(rustc --version 2>/dev/null | cut -d' ' -f2) && at_least "$version" $rust_oldest; }
have_guest_toolchain() { [ "$(scripts/guest-cargo.sh --which)" != none ]; }
have_qemu() {
    have qemu-system-x86_64 || return 1
    at_least "$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9.]*\).*/\1/p;q')" $qemu_oldest
}

# What is missing, by the names used below and in the error message.
missing() {
    have_host_cargo || echo "rust"
    have_guest_toolchain || echo "guest-rust"
    have cc || echo "cc"
    have ld || echo "ld"
    have_qemu || echo "qemu"
    have curl || echo "curl"
    case $1 in tests | ci)
        { have ip && have ping && have nsenter; } || echo "network-tools"
        { have mkfs.fat && have mcopy && have mke2fs && have debugfs && have sfdisk && have mkfs.exfat; } || echo "file-system-tools" ;;
    esac
    case $1 in coverage) [ "$(scripts/coverage.sh --tools)" != none ] || echo "llvm" ;; esac
    case $1 in ci) { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 || echo "rust-tools" ;; esac
}

is_built() { [ "$("target/tools/bin/$1" --version 2>/dev/null)" = "$1 $2" ]; }

# What the tests can do without: the cells that need it are passed over then.
wished() {
    case $1 in tests | ci) ;; *) return 0 ;; esac
    grep -qs vhost-user-gpu /usr/share/qemu/vhost-user/*.json || echo "gpu-daemon"
    have qemu-storage-daemon || echo "disk-daemon"
    { have Xvfb && have xdotool; } || echo "window-tools"
    have iperf3 || echo "iperf3"
    is_built vhost-device-sound $sound_daemon || echo "sound-daemon"
    is_built vhost-device-rng $rng_daemon || echo "rng-daemon"
}

explain() {
    case $1 in
    rust) echo "Rust >= $rust_oldest for this machine: cargo and rustc (https://rustup.rs, or Debian's rustc-web and cargo-web)" ;;
    guest-rust) echo "Rust >= $rust_oldest for x86_64-unknown-none: \`rustup target add x86_64-unknown-none\`, or Debian's rustc-web cargo-web rust-web-src" ;;
    cc) echo "a C compiler as linker for host programs: Debian's gcc and libc6-dev" ;;
    ld) echo "GNU ld: Debian's binutils" ;;
    qemu) echo "qemu-system-x86_64 >= $qemu_oldest: Debian's qemu-system-x86 (on bookworm from bookworm-backports)" ;;
    curl) echo "curl" ;;
    rust-tools) echo "rustfmt and clippy: \`rustup component add rustfmt clippy\`, or Debian's rustfmt-web and rust-web-clippy" ;;
    llvm) echo "llvm-profdata and llvm-cov of the LLVM that rustc has: Debian's llvm-$(llvm), or \`rustup component add llvm-tools\`" ;;
    file-system-tools) echo "mkfs.fat, mcopy, mke2fs, debugfs, sfdisk and mkfs.exfat: Debian's dosfstools, mtools, e2fsprogs, fdisk and exfatprogs" ;;
    gpu-daemon) echo "QEMU's vhost-user-gpu: Debian's qemu-system-gui" ;;
    disk-daemon) echo "QEMU's storage daemon: Debian's qemu-utils" ;;
    window-tools) echo "an X server without a screen, and a hand for its windows: Debian's xvfb and xdotool" ;;
    iperf3) echo "iperf3" ;;
    sound-daemon) echo "vhost-device-sound $sound_daemon in target/tools: a crate, with ALSA (Debian's libasound2-dev and pkg-config)" ;;
    rng-daemon) echo "vhost-device-rng $rng_daemon in target/tools: a crate" ;;
    network-tools) echo "ip, ping and nsenter: Debian's iproute2, iputils-ping and util-linux" ;;
    esac
}

give_up() {
    say "could not install: $1" >&2
    for need in $(missing "$scope"); do say "needed: $(explain "$need")" >&2; done
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9][^ ]*\)/\2/p'; }

# apt's package lists are refreshed once, and only when something must be installed.
refreshed=no
refresh() {
    [ $refreshed = no ] || return 0
    say "refreshing apt's package lists"
    as_root apt-get -qq update || give_up "apt-get update failed"
    refreshed=yes
}

install() {
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >/dev/null </dev/null \
        || give_up "apt-get install $* failed"
}

# Adds the backports suite of this release from the mirror, and with the key, that apt already uses for the release.
add_backports() {
    release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    file=/etc/apt/sources.list.d/vringlet-backports.sources
    [ -n "$release" ] || give_up "/etc/os-release names no release"
    if apt-cache policy | grep -q "n=$release-backports"; then return 0; fi
    stanza=$(for source in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -r "$source" ] || continue
        case $source in
        *.sources) awk -v release="$release" -v RS= -v FS='\n' '{
                mine = 0
                for (i = 1; i <= NF; i++) if ($i ~ /^Suites:/ && ($i " ") ~ ("[ \t]" release "[ \t]")) mine = 1
                for (i = 1; i <= NF; i++) if ($i ~ /^Enabled:[ \t]*no/) mine = 0
                if (!mine) next
                for (i = 1; i <= NF; i++) if ($i !~ /^#/) print ($i ~ /^Suites:/) ? "Suites: " release "-backports" : $i
                exit
            }' "$source" ;;
        *) sed -n "s/^deb \(\[[^]]*\]\)\{0,1\} *\([^ ]*\) $release .*/\1 \2/p" "$source" | head -n 1 \
            | while read -r options; do
                echo "Types: deb"
                echo "URIs: ${options##* }"
                echo "Suites: $release-backports"
                echo "Components: main"
                key=$(echo "$options" | sed -n 's/.*signed-by=\([^] ]*\).*/\1/p')
                [ -z "$key" ] || echo "Signed-By: $key"
            done ;;
        esac
    done | awk -v RS= 'NR == 1')
    [ -n "$stanza" ] || give_up "no apt source for $release to take the mirror from"
    say "adding $release-backports in $file"
    echo "$stanza" | as_root tee "$file" >/dev/null || give_up "$file can't be written"
    refreshed=no
    refresh
}

# A package of QEMU's. All of them must be of one version, and are, as they come from one suite.
install_qemu() {
    version=$(candidate "$1")
    if [ -n "$version" ] && at_least "$version" $qemu_oldest; then
        install "$1"
    else
        add_backports
        install -t "$(. /etc/os-release && echo "$VERSION_CODENAME")-backports" "$1"
    fi
}

can_install() { have apt-get && as_root true 2>/dev/null; }

install_sound_daemon() {
    if ! { have pkg-config && pkg-config --exists alsa; }; then
        can_install || give_up "ALSA's headers are not there"
        refresh
        install libasound2-dev pkg-config
    fi
    build_daemon vhost-device-sound $sound_daemon --no-default-features --features alsa-backend
}

# $1: the crate; $2: its version; then what cargo is told besides.
build_daemon() {
    name=$1 version=$2
    shift 2
    say "building $name $version in target/tools"
    cargo install --quiet --locked --root target/tools "$name" --version "$version" "$@" \
        || give_up "$name could not be built"
}

# Installs what the tests can do without, if that is possible here.
grant() {
    case $1 in
    gpu-daemon)
        can_install || return 0
        refresh
        install_qemu qemu-system-gui ;;
    disk-daemon)
        can_install || return 0
        refresh
        install_qemu qemu-utils ;;
    window-tools)
        can_install || return 0
        refresh
        install xvfb xdotool ;;
    iperf3)
        can_install || return 0
        refresh
        install iperf3 ;;
    sound-daemon) install_sound_daemon ;;
    rng-daemon) build_daemon vhost-device-rng $rng_daemon ;;
    esac
}

grant_wishes() {
    for wish in $(wished "$scope"); do
        # What gives up, gives up on this alone.
        (grant "$wish") || true
    done
    for wish in $(wished "$scope"); do
        say "without it, some cells are passed over: $(explain "$wish")"
    done
}

# The distribution's Rust: Debian's `-web` packages are the newer ones where both are.
install_rust() {
    for packages in "rustc-web cargo-web $1" "rustc cargo ${1:+rust-src}"; do
        version=$(candidate "${packages%% *}")
        if [ -n "$version" ] && at_least "$version" $rust_oldest; then
            # shellcheck disable=SC2086
            install $packages
            return
        fi
    done
    give_up "no rustc >= $rust_oldest among apt's packages"
}

install_rust_tools() {
    if have rustup; then give_up "rustup's toolchain lacks rustfmt or clippy"; fi
    if [ -n "$(candidate rustfmt-web)" ]; then install rustfmt-web rust-web-clippy; else install rustfmt rust-clippy; fi
}

scope=${1-run}
needs=$(missing "$scope")
if [ -z "$needs" ] && [ -z "$(wished "$scope")" ]; then
    say "nothing is missing"
    exit 0
fi

case " $(echo $needs) " in *" guest-rust "*)
    # rustup may add the target by itself wherever it is allowed to download.
    if have rustup && [ "${RUSTUP_AUTO_INSTALL-1}" != 0 ]; then
        say "adding the target x86_64-unknown-none to rustup's toolchain"
        rustup target add x86_64-unknown-none || say "rustup could not: trying the distribution's Rust"
        needs=$(missing "$scope")
    fi ;;
esac
if [ -z "$needs" ]; then
    grant_wishes
    exit 0
fi

have apt-get || give_up "this machine has no apt"
as_root true 2>/dev/null || give_up "neither root nor passwordless sudo"
refresh
for need in $needs; do
    case $need in
    rust) install_rust "" ;;
    guest-rust) install_rust rust-web-src ;;
    cc) install gcc libc6-dev ;;
    ld) install binutils ;;
    qemu) install_qemu qemu-system-x86 ;;
    curl) install curl ca-certificates ;;
    rust-tools) install_rust_tools ;;
    llvm) install "llvm-$(llvm)" ;;
    file-system-tools) install dosfstools mtools e2fsprogs fdisk exfatprogs ;;
    network-tools) install iproute2 iputils-ping util-linux ;;
    esac
done
[ -z "$(missing "$scope")" ] || give_up "installed, and still not there"
grant_wishes
say "done"
