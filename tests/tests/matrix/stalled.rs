//! What stops answering, and must not stop the guest: a console that nobody reads.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Cell, MEMORY, PATIENCE};
use vringlet_tests::net::clients::status;
use vringlet_tests::net::{FORWARDS, WEB};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(
            format!("{machine}/stalled/console"),
            move |cell| console(cell, machine),
        ));
    }
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
