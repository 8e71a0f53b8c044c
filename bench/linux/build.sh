#!/bin/sh
# Builds the Linux guest that ours is compared with, in target/bench/linux: Debian's kernel for clouds as `vmlinux` (the file that PVH
# boots, without firmware or decompression) and `initrd` with busybox, the modules for virtio, and load.c. Takes an ordinary user,
# apt's package lists, a C compiler with a static libc, and zstd and xz. What is built already is left alone.
set -eu
cd "$(dirname "$0")"
from=$PWD
to=$PWD/../../target/bench/linux
mkdir -p "$to"
cd "$to"

kernel=$(apt-cache show linux-image-cloud-amd64 | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | sort -V | tail -n 1)
[ -n "$kernel" ] || { echo "apt knows no linux-image-cloud-amd64" >&2; exit 1; }
release=${kernel#linux-image-}

if [ "$(cat release 2>/dev/null)" != "$release" ]; then
    echo "bench: downloading $kernel and busybox-static"
    rm -rf root ./*.deb
    # apt's warning that it downloads as who calls it, and not as its own user.
    apt-get -qq download "$kernel" busybox-static 2>download.log || { cat download.log >&2; exit 1; }
    for package in ./*.deb; do dpkg-deb -x "$package" root; done

    # Where the compressed kernel is in the bzImage: see the kernel's Documentation/arch/x86/boot.rst.
    image=root/boot/vmlinuz-$release
    number() { od -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
    start=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
    # Its last four bytes are the size of what comes out.
    length=$(($(number 588 4) - 4))
    tail -c +$((start + 1)) "$image" | head -c $length | zstd -q -d >vmlinux.new
    mv vmlinux.new vmlinux
    echo "$release" >release
fi

if [ ! -e initrd ] || [ -n "$(find "$from" release -newer initrd)" ]; then
    rm -rf files
    mkdir -p files/bin files/dev files/proc files/sys
    cp root/bin/busybox files/bin/
    for command in cat ifconfig insmod mount poweroff tr; do ln -s busybox "files/bin/$command"; done
    cp "$from/init" files/init
    chmod +x files/init
    # In the order in which they need each other.
    modules() {
        mkdir -p "files/modules/$1"
        folder=files/modules/$1 number=10
        shift
        for module; do
            xz -dc "root/lib/modules/$release/kernel/drivers/$module.ko.xz" >"$folder/$number-${module##*/}.ko"
            number=$((number + 1))
        done
    }
    modules blk block/virtio_blk
    modules net ../net/core/failover net/net_failover net/virtio_net
    modules pmem nvdimm/libnvdimm nvdimm/nd_btt nvdimm/nd_pmem nvdimm/nd_virtio nvdimm/virtio_pmem
    ${CC:-cc} -O2 -Wall -static -o files/bin/load "$from/load.c"
    (cd files && find . | ../root/bin/busybox cpio -o -H newc) >initrd.new 2>/dev/null
    mv initrd.new initrd
fi
