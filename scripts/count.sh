#!/bin/sh
# Counts guest instructions per request of `blk bench`, at depth 1, 16 and 32: `scripts/count.sh [WORDS]`, where WORDS are
# `rw=randread` if nothing is said, or others of that command, such as `rw=write fsync=8`. Needs a C compiler and QEMU 9.1.
#
# It is TCG that counts, whatever works here besides; `CPU` is the processor that it emulates.
#
# The disk has nothing behind it. At depth 1 it takes longer than the processor needs to fall asleep, as a real one does;
# else it is done at once.
set -eu
cd "$(dirname "$0")/.."
words=${*:-rw=randread}
case ${ACCEL:-auto} in auto | tcg*) ;; *)
    echo "ACCEL=$ACCEL: only TCG counts instructions" >&2
    exit 2 ;;
esac
case ${ACCEL-} in tcg*) accel=$ACCEL ;; *) accel=tcg ;; esac

scripts/guest.sh
plugin=$PWD/target/count.so
${CC:-cc} -shared -fPIC -O2 -Wall -o "$plugin" scripts/count.c
log=$PWD/target/count.log

# $1: the depth; $2: nanoseconds that each request takes; $3: requests.
count() {
    counted=$(timeout 120 qemu-system-x86_64 -machine q35 -accel "$accel" ${CPU:+-cpu "$CPU"} -display none -nodefaults -no-user-config \
        -kernel target/guest.elf -device isa-debug-exit,iobase=0xf4,iosize=4 -serial "file:$log" \
        -blockdev "null-co,node-name=d0,size=8589934592,read-zeroes=on,latency-ns=$2" -device virtio-blk-pci,drive=d0 \
        -fw_cfg "name=opt/vringlet/script,string=strict; blk bench blk0 $words iodepth=$1 count=$3; poweroff" \
        -plugin "$plugin,mmio=off") && [ -n "$counted" ] || { tail -n 3 "$log" >&2; exit 1; }
    counted=${counted#* instructions=}
    counted=${counted%% *}
    echo "blk bench $words iodepth=$1: $(((counted + $3 / 2) / $3)) guest instructions per request"
}

count 1 200000 2000
count 16 0 20000
count 32 0 20000
