//! What stops answering, and must not stop the guest: a console that nobody reads, a device that answers nothing, one that
//! never interrupts.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Cell, MEMORY, PATIENCE};
use vringlet_tests::disk::{Disk, MIB};
use vringlet_tests::guest::End;
use vringlet_tests::net::clients::status;
use vringlet_tests::net::{FORWARDS, WEB};
use vringlet_tests::qemu::Image;

use super::pmem::pattern_bytes;
use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(
            format!("{machine}/stalled/console"),
            move |cell| console(cell, machine),
        ));
    }
    cells.push(Spec::new("q35/stalled/blk", disk));
    cells.push(Spec::new("q35/stalled/interrupts", interrupts));
    cells
}

/// While nobody reads the console the guest serves its page; whoever reads it again finds whole lines, is told how much is
/// missing, and has a shell that works.
fn console(cell: &Cell, machine: &str) -> Result<()> {
    /// More than pipe and queue take.
    const COMMANDS: usize = 150;
    const LOST: &str = " bytes of output lost";
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.user_net("n0", FORWARDS);
    qemu.virtio("net", "dev0", "netdev=n0");
    let mut guest = cell.boot(qemu)?;
    guest.eventually("net0: address 10.0.2.15/24")?;
    guest.command("uptime", "serial bytes lost: 0 in, 0 out")?;
    guest.expect_prompt()?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;

    guest.console().hold();
    guest.type_line(&vec!["help"; COMMANDS].join("\r"))?;
    let start = Instant::now();
    let lost = loop {
        let status = status(port).context("while nobody reads the console")?;
        let lost = status["console"]["lost_output"].as_u64();
        match lost.context("no console in the JSON")? {
            0 => ensure!(start.elapsed() < PATIENCE, "the guest lost no output"),
            lost => break lost,
        }
    };
    status(port).context("after output was lost")?;

    guest.console().release();
    let told = guest.expect(LOST)?.text;
    guest.command("echo here again", "here again")?;
    let last = guest.command("uptime", "serial bytes lost: 0 in, ")?.text;
    let all: u64 = last
        .split(' ')
        .rev()
        .nth(1)
        .and_then(|count| count.parse().ok())
        .with_context(|| format!("no count in {last:?}"))?;
    ensure!(all >= lost, "{all} bytes lost after {lost}");
    let lines = guest.console().lines();
    let notices = lines.iter().filter_map(|line| {
        let text = line.text.strip_prefix("... ")?;
        text.strip_suffix(LOST)?.parse::<u64>().ok()
    });
    let sum: u64 = notices.sum();
    ensure!(sum == all, "{all} bytes lost, {sum} told of: {told:?}");
    let position = lines.iter().rposition(|line| line.text.ends_with(LOST));
    let next = position.and_then(|position| lines.get(position + 1));
    let next = next.context("nothing after the notice")?;
    let whole = |line: &str| lines.iter().filter(|it| it.text == line).count() > 1;
    ensure!(whole(&next.text), "half a line: {:?}", next.text);
    guest.power_off()
}

/// A disk that an IOMMU keeps from all memory answers nothing. Ctrl-C gives the prompt back before its time is up; the
/// command that waits on gets a named error; another disk and the page work all the while.
fn disk(cell: &Cell) -> Result<()> {
    const SECONDS: u64 = 4;
    // QEMU's words, said once, for what the IOMMU stops; there is no driver to be told of it.
    const STOPPED: [&str; 2] = [
        ": virtio_iommu_translate sid=16 is not known!!",
        ": no buffer available in event queue to report event",
    ];
    let mut good = Disk::create(cell.file("good.img"), MIB, 3)?;
    let bad = Disk::create(cell.file("bad.img"), MIB, 4)?;
    // The firmware would have a disk controller of the machine's own reach through the IOMMU.
    let mut qemu = cell.qemu(&"q35,sata=off".parse()?, MEMORY)?;
    qemu.cmdline(&format!("timeout={SECONDS}"));
    qemu.arg("-device", "virtio-iommu-pci,boot-bypass=off");
    qemu.drive("d0", bad.path(), Image::RAW)?;
    qemu.virtio(
        "blk",
        "dev0",
        "drive=d0,disable-legacy=on,iommu_platform=on",
    );
    qemu.drive("d1", good.path(), Image::RAW)?;
    qemu.virtio("blk", "dev1", "drive=d1");
    qemu.user_net("n0", FORWARDS);
    qemu.virtio("net", "net0", "netdev=n0");
    let mut guest = cell.boot(qemu)?;
    guest.eventually("net0: address 10.0.2.15/24")?;
    guest.expect_prompt()?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let unanswered = format!("queue 0: no answer in {SECONDS} s");
    let place = "virtio-blk at 00:02.0";

    guest.type_line("blk hash blk0")?;
    let pressed = guest.interrupt()?;
    guest.command("blk verify blk1 0 2048 3", "verified sectors=2048")?;
    status(port).context("while a disk answers nothing")?;
    guest.eventually("blk0: started again")?;
    let reset = guest
        .console()
        .find(&format!("blk0: {place}: {unanswered}"));
    let reset = reset.context("started again for another reason")?;
    ensure!(pressed.at < reset.at, "Ctrl-C had to wait for the disk");

    guest.type_line("blk hash blk0")?;
    status(port).context("while a command waits")?;
    guest.expect(&format!("error: blk0: read at 0: {place}: {unanswered}"))?;
    guest.command("blk fill blk1 0 64 5", "filled sectors=64")?;
    // The IOMMU stops the messages of all devices. A disk that is done before the processor sleeps needs none.
    guest.eventually("net0: done with a request without an interrupt")?;
    good.expect_pattern(0..64, 5);
    guest.type_line("poweroff")?;
    guest.ends_with_complaints(&End::PowerOff, &STOPPED)?;
    bad.check()?;
    good.check()
}

/// The firmware says that the device is on a line that leads nowhere.
fn interrupts(cell: &Cell) -> Result<()> {
    const MEMORY_BYTES: usize = 2 << 20;
    const SAID: &str = "pmem0: done with a request without an interrupt (intx): polled";
    let file = cell.file("pmem.img");
    std::fs::write(&file, vec![0; MEMORY_BYTES])?;
    let mut qemu = cell.qemu(&"q35".parse()?, "128M,maxmem=2G")?;
    qemu.arg("-bios", "qboot.rom");
    qemu.persistent_memory("pmem0", &file, "")?;
    // Without a limit to run into.
    qemu.cmdline("timeout=3600 store=none");
    qemu.script("strict; pmem fill pmem0 1000 5000 7");
    let mut guest = cell.boot(qemu)?;
    // A flush that is done before the processor sleeps needs no interrupt and shows nothing.
    let mut flushes = 0;
    while guest.console().find(SAID).is_none() {
        ensure!(flushes < 100, "{flushes} flushes needed no interrupt");
        guest.command("pmem flush pmem0", "> pmem flush pmem0")?;
        flushes += 1;
    }
    guest.command("virtio pmem0", "(polled)")?;
    guest.command("pmem bench pmem0 count=20 depth=3", "bench op=flush")?;
    guest.command("selftest", "put back and flushed")?;
    guest.command("pmem flush pmem0", "> pmem flush pmem0")?;
    guest.type_line("poweroff")?;
    guest.ends_with(&End::PowerOff)?;
    let lines = guest.console().lines();
    let said = lines.iter().filter(|line| line.text.contains(SAID)).count();
    ensure!(said == 1, "said {said} times: {SAID}");
    let mut expected = vec![0; MEMORY_BYTES];
    expected[1000..6000].copy_from_slice(&pattern_bytes(7, 1000..6000));
    let found = std::fs::read(&file)?;
    ensure!(found == expected, "the memory has other bytes");
    Ok(())
}
