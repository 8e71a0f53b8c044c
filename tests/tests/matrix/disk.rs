//! Disks: every command, every size, and what must not happen to them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::disk::{Disk, MIB, SECTOR};
use vringlet_tests::guest::End;
use vringlet_tests::images::{FileSystem, Files, run};
use vringlet_tests::qemu::{Format, Image, Qemu, escape, utf8};
use vringlet_tests::vhost_user::{Daemon, no_disk};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(
            format!("{machine}/disk/whole-64M"),
            move |cell| whole(cell, machine),
        ));
        cells.push(Spec::new(format!("{machine}/disk/commands"), move |cell| {
            commands(cell, machine)
        }));
        cells.push(Spec::new(
            format!("{machine}/disk/read-only"),
            move |cell| read_only(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/disk/block-size=4096"),
            move |cell| big_blocks(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/disk/resize-under-load"),
            move |cell| resize(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/disk/bad-sectors"),
            move |cell| bad_sectors(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/disk/out-of-range"),
            move |cell| out_of_range(cell, machine),
        ));
    }
    cells.push(Spec::new("q35/disk/selftest-broken-off", broken_off));
    cells.push(Spec::new("q35/disk/deeper-than-the-queue", deep));
    cells.push(Spec::new("q35/disk/interrupts-counted", counted));
    cells.push(Spec::new("q35/disk/bench-order", bench_order));
    cells.push(Spec::new("q35/disk/bench-write", bench_write));
    cells.push(Spec::new("q35/disk/bench-broken-off", bench_broken_off));
    cells.push(Spec::new("q35/disk/aligned-buffers", aligned));
    cells.push(Spec::new("q35/disk/vhost-user", daemon).unless(no_disk));
    for (size, name) in [(64, "64"), (1024, "1024")] {
        cells.push(Spec::new(
            format!("q35/disk/queue-size={name}"),
            move |cell| queue_size(cell, size),
        ));
    }
    cells
}

/// The self-check of a disk puts back what was there, also when it is broken off between, and the machine switched off.
fn broken_off(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 1)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    // Some seconds for what is written.
    guest.process().limit_writes("d0", 100 << 10)?;
    guest.type_and_expect_writes("selftest", "d0", 64 << 10)?;
    guest.interrupt()?;
    guest.power_off()?;
    disk.check()
}

/// What the device is told to read and write begins at multiples of a block, whoever asks: a file that was opened with O_DIRECT
/// takes nothing else.
fn aligned(cell: &Cell) -> Result<()> {
    const QUEUE: u64 = 1024;
    let mut disk = Disk::create(cell.file("disk.img"), MIB, 1)?;
    let files = Files::from([("a.bin".into(), vec![7; 100_000])]);
    let (source, target) = (cell.file("source.img"), cell.file("target.img"));
    FileSystem::Fat(16).make(&source, 16, "SOURCE", &files)?;
    std::fs::File::create(&target)?.set_len(300 << 20)?;
    run("mkfs.fat", &["-F", "32", "-S", "4096", utf8(&target)?])?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    let disks = [(disk.path(), 512), (&source, 512), (&target, 4096)];
    for (index, (path, block)) in disks.iter().enumerate() {
        qemu.drive(&format!("d{index}"), path, Image::RAW)?;
        let blocks = format!("logical_block_size={block},physical_block_size={block}");
        let properties = format!("drive=d{index},queue-size={QUEUE},{blocks}");
        qemu.virtio("blk", &format!("dev{index}"), &properties);
    }
    let blocks = disks.map(|(_, block)| block);
    qemu.script(
        "strict; blk write blk0 3 x; blk verify blk0 8 100 1 max=1k; blk fill blk0 8 100 2 max=4k; blk bench blk0 count=100; \
         cp /blk1/a.bin /blk2/a.bin; sha256sum /blk2/a.bin",
    );
    disk.expect(3, &padded(b"x"));
    disk.expect_pattern(8..108, 2);
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    for (index, block) in blocks.into_iter().enumerate() {
        let path = format!("/machine/peripheral/dev{index}/virtio-backend");
        let status = json!({ "path": path, "queue": 0 });
        let qmp = &mut guest.process().qmp;
        let status = qmp.execute("x-query-virtio-queue-status", status)?;
        let used = status["used-idx"]
            .as_u64()
            .context("how many requests there were")?;
        ensure!((1..=QUEUE).contains(&used), "{used} requests");
        let mut checked = 0;
        for request in 0..used {
            let element = json!({ "path": path, "queue": 0, "index": request });
            let element = qmp.execute("x-query-virtio-queue-element", element)?;
            let segments = element["descs"].as_array().context("segments")?;
            for segment in segments {
                let number = |name: &str| segment[name].as_u64().context("a number");
                let (address, len) = (number("addr")?, number("len")?);
                // Header, status and name are shorter.
                if len >= 512 {
                    ensure!(
                        address % block == 0 && len % block == 0,
                        "{len} bytes at {address:#x}"
                    );
                    checked += 1;
                }
            }
        }
        ensure!(checked > 2, "{checked} segments of data in {used} requests");
    }
    guest.power_off()?;
    disk.check()
}

/// The disk that QEMU's storage daemon offers. With QEMU 10 it says that a segment has 0 bytes at most.
fn daemon(cell: &Cell) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), 16 * MIB, 1)?;
    let sectors = disk.sectors();
    let daemon = Daemon::disk(cell.directory(), disk.path())?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.share_memory(MEMORY);
    daemon.attach(&mut qemu, "vhost-user-blk-pci", "dev0", "")?;
    qemu.script(&format!(
        "strict; blk info blk0; blk verify blk0 0 {sectors} 1 depth=8; blk fill blk0 100 5000 2 depth=32 max=256k; \
         blk zero blk0 8 8; blk flush blk0; blk verify blk0 100 5000 2; virtio blk0; poweroff"
    ));
    disk.expect_pattern(100..5100, 2);
    disk.expect(8, &[0; 8 * SECTOR]);
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("virtio blk0", " violations=0")?;
    guest.check_said("virtio blk0", " errors=0")?;
    daemon.complains_only_of(&[])?;
    disk.check()
}

/// All of a disk written in requests of random sizes, many at once, then read back the same way by hash.
fn whole(cell: &Cell, machine: &str) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), 64 * MIB, 1)?;
    let sectors = disk.sectors();
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let hash = "blk hash blk0 depth=64";
    qemu.script(&format!(
        "strict; {hash}; blk fill blk0 0 {sectors} 77 depth=128 max=256k; blk flush blk0; \
         blk verify blk0 0 {sectors} 77 depth=7 max=1M; blk hash blk0; poweroff"
    ));
    let before = disk.sha256();
    disk.expect_pattern(0..sectors, 77);
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for (command, expected) in [(hash, before), ("blk hash blk0", disk.sha256())] {
        let output = guest.console().output_of(command)?;
        ensure!(
            output.iter().any(|line| line.contains(&expected)),
            "{command} said {output:?} and not {expected}"
        );
    }
    disk.check()
}

fn commands(cell: &Cell, machine: &str) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), 4 * MIB, 1)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio(
        "blk",
        "dev0",
        "drive=d0,serial=a-serial-of-20-byte,discard_granularity=4096",
    );
    qemu.script(
        "strict; blk info blk0; blk id blk0; blk read blk0 5; blk write blk0 7 hello; blk zero blk0 16 32; \
         blk discard blk0 1024 512; blk wce blk0; blk wce blk0 off; blk write blk0 9 through; blk wce blk0 on; \
         blk flush blk0; blk hash blk0 2048 100; poweroff",
    );
    disk.expect(7, &padded(b"hello"));
    disk.expect(9, &padded(b"through"));
    disk.expect(16, &[0; 32 * SECTOR]);
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let said = |command: &str, text: &str| -> Result<()> {
        let output = guest.console().output_of(command)?;
        ensure!(
            output.iter().any(|line| line.contains(text)),
            "{command} said {output:?} without {text:?}"
        );
        Ok(())
    };
    said(
        "blk info blk0",
        "capacity_sectors=8192 block_size=512 read_only=no",
    )?;
    said("blk id blk0", "id=a-serial-of-20-byte")?;
    let bytes: Vec<u8> = vringlet_tests::disk::pattern(1, 2048..2148).collect();
    said(
        "blk hash blk0 2048 100",
        &format!("sha256={}", vringlet_tests::disk::sha256(&bytes)),
    )?;
    // The hex dump shows the sector's first bytes in order.
    let first: Vec<_> = vringlet_tests::disk::pattern(1, 5..6)
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dump = guest.console().output_of("blk read blk0 5")?.join("\n");
    let digits = |text: &str| {
        text.chars()
            .filter(char::is_ascii_hexdigit)
            .collect::<String>()
    };
    ensure!(
        digits(&dump).contains(&first.concat()),
        "the dump of sector 5 lacks {first:?}: {dump}"
    );
    // What a discarded sector holds is the device's own business.
    disk.check_except(1024..1536)
}

fn padded(text: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..text.len()].copy_from_slice(text);
    sector
}

fn read_only(cell: &Cell, machine: &str) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 9)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive(
        "d0",
        disk.path(),
        Image {
            format: Format::Raw,
            read_only: true,
        },
    )?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let writes = [
        "blk write blk0 0 x",
        "blk zero blk0 0 8",
        "blk discard blk0 0 8",
        "blk fill blk0 0 8 1",
    ];
    qemu.script(&format!(
        "blk info blk0; {}; strict; blk verify blk0 0 2048 9; poweroff",
        writes.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for command in writes {
        let output = guest.console().output_of(command)?;
        ensure!(
            output.iter().any(|line| line.starts_with("error: ")),
            "{command} on a read-only disk: {output:?}"
        );
    }
    let info = guest.console().output_of("blk info blk0")?;
    ensure!(
        info.iter().any(|line| line.contains("read_only=yes")),
        "blk info said {info:?}"
    );
    disk.check()
}

fn big_blocks(cell: &Cell, machine: &str) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), 4 * MIB, 1)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio(
        "blk",
        "dev0",
        "drive=d0,logical_block_size=4096,physical_block_size=4096",
    );
    qemu.script(
        "strict; blk info blk0; blk verify blk0 0 8192 1 depth=4; blk fill blk0 16 1024 2 depth=8 max=32k; blk flush blk0; \
         blk verify blk0 16 1024 2; poweroff",
    );
    disk.expect_pattern(16..1040, 2);
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let info = guest.console().output_of("blk info blk0")?;
    ensure!(
        info.iter().any(|line| line.contains("block_size=4096")),
        "blk info said {info:?}"
    );
    disk.check()
}

/// The disk grows while requests are in flight; the guest sees the new size and can use all of it.
fn resize(cell: &Cell, machine: &str) -> Result<()> {
    const GROWN: u64 = 40 * MIB;
    let mut disk = Disk::create(cell.file("disk.img"), 32 * MIB, 1)?;
    let sectors = disk.sectors();
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    qemu.script(&format!(
        "strict; echo under load; blk fill blk0 0 {sectors} 2 depth=32 max=64k"
    ));
    let mut guest = cell.boot(qemu)?;
    guest.expect("under load")?;
    guest.process().qmp.execute(
        "block_resize",
        json!({ "device": "d0", "size": GROWN * SECTOR as u64 }),
    )?;
    let during = guest.console().find("filled sectors=").is_none();
    guest.expect(&format!("filled sectors={sectors}"))?;
    ensure!(during, "the load was over before the disk was resized");
    guest.command("blk info blk0", &format!("capacity_sectors={GROWN}"))?;
    guest.command(
        &format!("blk fill blk0 {sectors} {} 3", GROWN - sectors),
        "filled sectors=",
    )?;
    guest.command("blk flush blk0", "blk flush blk0")?;
    disk.expect_pattern(0..sectors, 2);
    disk.expect_pattern(sectors..GROWN, 3);
    guest.power_off()?;
    disk.check()
}

/// A device that reports an I/O error for some sectors: the command names it, the rest goes on working.
fn bad_sectors(cell: &Cell, machine: &str) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), MIB, 1)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.arg(
        "-drive",
        &format!(
            "if=none,id=d0,driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
             file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector=100,\
             file.inject-error.1.event=none,file.inject-error.1.iotype=write,file.inject-error.1.sector=200,\
             file.inject-error.2.event=none,file.inject-error.2.iotype=flush,file.inject-error.2.once=on",
            escape(utf8(disk.path())?)
        ),
    );
    qemu.virtio("blk", "dev0", "drive=d0");
    let failing = [
        "blk flush blk0",
        "blk read blk0 100",
        "blk write blk0 200 x",
        "blk verify blk0 0 2048 1 depth=16 max=16k",
        "blk bench blk0 depth=8",
    ];
    qemu.script(&format!(
        "blk write blk0 300 first; {}; strict; blk verify blk0 101 99 1; blk write blk0 201 fine; \
         blk flush blk0; poweroff",
        failing.join("; ")
    ));
    disk.expect(201, &padded(b"fine"));
    disk.expect(300, &padded(b"first"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for command in failing {
        let output = guest.console().output_of(command)?;
        let named = output
            .iter()
            .any(|line| line.starts_with("error: ") && line.contains("blk0"));
        ensure!(named, "{command} on a bad sector: {output:?}");
    }
    disk.check()
}

/// Requests beyond the end are refused, however large the numbers are.
fn out_of_range(cell: &Cell, machine: &str) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 1)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let refused = [
        "blk read blk0 2048",
        "blk read blk0 2047 2",
        "blk read blk0 18446744073709551615",
        "blk read blk0 36028797018963968",
        "blk read blk0 -1",
        "blk read blk0 18446744073709551616",
        "blk read blk1 0",
        "blk read blk0",
        "blk write blk0 2048 x",
        "blk fill blk0 2000 49 1",
        "blk verify blk0 0 2049 1",
        "blk zero blk0 2048 1",
        "blk discard blk0 0 18446744073709551615",
        "blk hash blk0 1 18446744073709551615",
        "blk fill blk0 0 8 1 depth=0",
        "blk fill blk0 0 8 1 max=0",
        "blk fill blk0 0 8 1 depht=1",
        "blk bench blk0 sideways",
        "blk bench blk0 read write",
        "blk bench blk0 random random",
        "blk bench blk0 depht=1",
        "blk bench blk0 depth=0",
        "blk bench blk0 size=0",
        "blk bench blk0 size=2M",
        "blk bench blk0 flush=8",
        "blk bench blk0 write flush=0",
        "blk bench blk0 write flush=x",
        "blk bench blk0 rw=sideways",
        "blk bench blk0 rw=read random",
        "blk bench blk0 rw=read fsync=1",
        "blk bench blk0 bs=4k size=4k",
        "blk bench blk0 rw=write latencies",
        "blk bench blk0 latencies latencies",
        "bench blk blk0 iodepth=0",
        "bench disk blk0",
        "bench bench blk blk0",
        "bench mark middle",
    ];
    qemu.script(&format!(
        "{}; strict; blk verify blk0 2047 1 1; poweroff",
        refused.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for command in refused {
        let output = guest.console().output_of(command)?;
        let one_line = matches!(&output[..], [line] if line.starts_with("error: ") || line.starts_with("usage: "));
        ensure!(
            one_line,
            "{command} should get one line that refuses it, not {output:?}"
        );
    }
    disk.check()
}

/// A guest whose disk has nothing behind it, and takes `latency` nanoseconds for each request.
fn null_disk(cell: &Cell, latency: u64, script: &str) -> Result<Qemu> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    let zeros = format!(
        "driver=null-co,node-name=d0,size={},read-zeroes=on,latency-ns={latency}",
        64 * MIB
    );
    qemu.arg("-blockdev", &zeros);
    qemu.virtio("blk", "dev0", "drive=d0");
    qemu.script(script);
    Ok(qemu)
}

/// More requests than the queue takes, of a disk that is done with all that it has at once: those that wait for room get
/// it all the same.
fn deep(cell: &Cell) -> Result<()> {
    const BENCH: &str = "blk bench blk0 depth=600 count=20000";
    let qemu = null_disk(cell, 0, &format!("strict; {BENCH}; poweroff"))?;
    let mut guest = cell.boot(qemu)?;
    guest.expect(" requests=20000 ")?;
    guest.ends_with(&End::PowerOff)
}

/// One request after the other, of a disk that is slower than the processor falls asleep: an interrupt ends each sleep. The
/// timer, whose registers are a device's, is left alone where nothing waits for another time than before.
fn counted(cell: &Cell) -> Result<()> {
    const BENCH: &str = "blk bench blk0 depth=1 count=200";
    const TIMER_SET: &str = "apic_register_write register 0x38 ";
    let mut qemu = null_disk(cell, 1_000_000, &format!("strict; {BENCH}; poweroff"))?;
    let trace = cell.file("trace.log");
    let file = escape(utf8(&trace)?);
    let events = format!("enable=apic_register_write,file={file}");
    qemu.arg("-trace", &events);
    let mut guest = cell.boot(qemu)?;
    let said = guest.expect(" requests=200 ")?.text;
    let of = |name: &str| -> Result<u64> {
        let mut words = said.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let value = value.with_context(|| format!("{said:?} has no {name}"))?;
        Ok(value.parse()?)
    };
    ensure!(of("kicks")? == 200, "{said}");
    // Where the host is busy, a request may be done before the processor sleeps, and then needs none.
    let interrupts = of("interrupts")?;
    ensure!((1..=200).contains(&interrupts), "{said}");
    guest.ends_with(&End::PowerOff)?;
    let trace = std::fs::read_to_string(&trace).context("reading the trace")?;
    let set = trace.lines().filter(|line| line.starts_with(TIMER_SET));
    let set = set.count();
    ensure!((1..100).contains(&set), "the timer was set {set} times");
    Ok(())
}

/// Has QEMU note each `operation`, "read" or "write", that a disk is asked for.
fn trace_disk(cell: &Cell, qemu: &mut Qemu, operation: &str) -> Result<PathBuf> {
    let trace = cell.file("trace.log");
    let file = escape(utf8(&trace)?);
    qemu.arg(
        "-trace",
        &format!("enable=virtio_blk_handle_{operation},file={file}"),
    );
    Ok(trace)
}

/// The sectors that a disk was asked for, in their order, each the first of `length`. With a file for the trace, QEMU's log
/// of guest errors goes there too: there must be no other line.
fn traced_sectors(trace: &Path, operation: &str, length: u64) -> Result<Vec<u64>> {
    let text = std::fs::read_to_string(trace).context("reading the trace")?;
    let prefix = format!("virtio_blk_handle_{operation} ");
    let suffix = format!(" nsectors {length}");
    let sector = |line: &str| -> Option<u64> {
        let (_, sector) = line
            .strip_prefix(&prefix)?
            .strip_suffix(&suffix)?
            .split_once(" sector ")?;
        sector.parse().ok()
    };
    let sectors = text
        .lines()
        .map(|line| sector(line).with_context(|| format!("{line:?} in the trace")));
    sectors.collect()
}

/// Where the benchmark reads, as the disk sees it: one place after the other, or anywhere on all of the disk, and there in
/// each run alike.
fn bench_order(cell: &Cell) -> Result<()> {
    const LENGTH: u64 = 24 << 10 >> 9;
    const COUNT: usize = 2000;
    let disk = Disk::create(cell.file("disk.img"), 8 * MIB, 1)?;
    // The last one would not be whole.
    let places = disk.sectors() / LENGTH;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let trace = trace_disk(cell, &mut qemu, "read")?;
    // By the command of its own, in fio's words, and in those from before.
    let benches = [
        "blk bench blk0 size=24k depth=8",
        "bench blk blk0 bs=24k iodepth=8 rw=randread latencies",
        "blk bench read random blk0 size=24k depth=1",
    ];
    let benches = benches.map(|words| format!("{words} count={COUNT}"));
    qemu.script(&format!("strict; {}; poweroff", benches.join("; ")));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said(&benches[0], "op=read order=sequential depth=8 size=24576")?;
    guest.check_said(&benches[1], "op=read order=random depth=8 size=24576")?;
    guest.check_said(&benches[1], "latencies ns 0=")?;
    let sectors = traced_sectors(&trace, "read", LENGTH)?;
    ensure!(sectors.len() == 3 * COUNT, "{} reads", sectors.len());
    let (sequential, random) = sectors.split_at(COUNT);
    for (number, sector) in (0..).zip(sequential) {
        let should = number % places * LENGTH;
        ensure!(*sector == should, "{number}: {sector}, not {should}");
    }
    let (random, again) = random.split_at(COUNT);
    ensure!(random == again, "another order in another run");
    let mut times = vec![0; places as usize];
    for sector in random {
        ensure!(sector % LENGTH == 0, "{sector} is no place's first sector");
        let times = times.get_mut((sector / LENGTH) as usize);
        *times.with_context(|| format!("{sector} is past the last whole place"))? += 1;
    }
    // Each place comes 5.9 times on average, so one or two of 341 are left out; among the 25 beside another, 6 are expected.
    let never = times.iter().filter(|times| **times == 0).count();
    let most = times.iter().max().copied().unwrap_or_default();
    ensure!(never <= 8, "{never} of {places} places were not read");
    ensure!(most <= 20, "a place was read {most} times");
    let next_to = random.windows(2).filter(|it| it[1] == it[0] + LENGTH);
    let next_to = next_to.count();
    ensure!(next_to <= 25, "{next_to} reads follow the one before");
    disk.check()
}

/// What the benchmark writes and flushes is done by the disk, so often, and only where it was asked for.
fn bench_write(cell: &Cell) -> Result<()> {
    const LENGTH: u64 = 8;
    const COUNT: u64 = 500;
    let mut disk = Disk::create(cell.file("disk.img"), 8 * MIB, 1)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let trace = trace_disk(cell, &mut qemu, "write")?;
    let mut guest = cell.boot(qemu)?;
    let counts = |guest: &mut Booted| -> Result<[u64; 3]> {
        let mut count = |name| guest.process().drive_count("d0", name);
        Ok([
            count("rd_operations")?,
            count("wr_operations")?,
            count("flush_operations")?,
        ])
    };
    guest.expect_prompt()?;
    let mut before = counts(&mut guest)?;
    for (words, flushes) in [
        ("rw=randwrite", 0),
        ("rw=randwrite fsync=7 iodepth=4", COUNT / 7),
        ("random write flush=1 depth=1", COUNT),
        ("rw=write fsync=501", 0),
    ] {
        let requests = COUNT + flushes;
        let bench = format!("blk bench blk0 {words} count={COUNT}");
        guest.command(&bench, &format!("requests={requests} flushes={flushes} "))?;
        let after = counts(&mut guest)?;
        let done: Vec<_> = after.iter().zip(before).map(|(b, a)| b - a).collect();
        ensure!(done == [0, COUNT, flushes], "{words}: {done:?}");
        before = after;
    }
    guest.power_off()?;
    for sector in traced_sectors(&trace, "write", LENGTH)? {
        disk.expect(sector, &[0; LENGTH as usize * SECTOR]);
    }
    disk.check()
}

/// A benchmark that is broken off reads no further.
fn bench_broken_off(cell: &Cell) -> Result<()> {
    const DEPTH: u64 = 16;
    let disk = Disk::create(cell.file("disk.img"), MIB, 1)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    let mut guest = cell.boot(qemu)?;
    guest.type_line(&format!("blk bench blk0 depth={DEPTH} count=100M"))?;
    let reads = |guest: &mut Booted| guest.process().drive_count("d0", "rd_operations");
    let deadline = Instant::now() + Duration::from_secs(30);
    while reads(&mut guest)? < 1000 {
        ensure!(Instant::now() < deadline, "it does not read");
        std::thread::sleep(Duration::from_millis(10));
    }
    guest.interrupt()?;
    let before = reads(&mut guest)?;
    for _ in 0..3 {
        guest.command("blk hash blk0 0 8 depth=1", "sha256=")?;
    }
    // What was in flight, and what was read for the hashes.
    let more = reads(&mut guest)? - before;
    ensure!(more <= DEPTH + 3, "{more} reads after it was broken off");
    guest.power_off()?;
    disk.check()
}

/// Rings of other lengths than the usual one, more requests at once than fit into the short one.
fn queue_size(cell: &Cell, size: u64) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), 8 * MIB, 1)?;
    let sectors = disk.sectors();
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio(
        "blk",
        "dev0",
        &format!("drive=d0,queue-size={size},indirect_desc=off"),
    );
    qemu.script(&format!(
        "strict; blk fill blk0 0 {sectors} 2 depth=512 max=8k; blk flush blk0; blk verify blk0 0 {sectors} 2 depth=512 max=8k; poweroff"
    ));
    disk.expect_pattern(0..sectors, 2);
    cell.boot(qemu)?.ends_with(&End::PowerOff)?;
    disk.check()
}
