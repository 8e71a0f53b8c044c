//! Disks: every command, every size, and what must not happen to them.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vringlet_tests::cell::{Cell, MEMORY};
use vringlet_tests::disk::{Disk, MIB, SECTOR};
use vringlet_tests::guest::End;
use vringlet_tests::qemu::{Format, Image, Qemu, escape, utf8};

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

/// One request after the other, of a disk that is slower than the processor falls asleep: an interrupt ends each sleep.
fn counted(cell: &Cell) -> Result<()> {
    const BENCH: &str = "blk bench blk0 depth=1 count=200";
    let qemu = null_disk(cell, 1_000_000, &format!("strict; {BENCH}; poweroff"))?;
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
    guest.ends_with(&End::PowerOff)
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
