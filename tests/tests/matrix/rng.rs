//! The entropy device: its bytes are the host's, and one that is slow stops nothing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::net::clients::curl;
use vringlet_tests::net::{FORWARDS, WEB};
use vringlet_tests::qemu::{Qemu, escape, utf8};
use vringlet_tests::vhost_user::{Daemon, no_rng};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "pc", "microvm", "microvm,pcie=on"] {
        cells.push(Spec::new(format!("{machine}/rng/bytes"), move |cell| {
            bytes(cell, machine)
        }));
    }
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(format!("{machine}/rng/file"), move |cell| {
            file(cell, machine, "")
        }));
        // A request takes three rations. When a ration falls due while QEMU has yet to see a request or still reads for it, it
        // reads twice for one buffer and loses the second. So the period is much longer than what comes between the boot,
        // with which the first begins, and the request; whatever follows is asked for when a ration has just come.
        cells.push(Spec::new(format!("{machine}/rng/rationed"), move |cell| {
            file(cell, machine, "max-bytes=2000,period=5000")
        }));
        cells.push(Spec::new(format!("{machine}/rng/slow"), move |cell| {
            slow(cell, machine)
        }));
    }
    cells.push(Spec::new("q35/rng/vhost-user", daemon).unless(no_rng));
    cells
}

/// The most that the command shows at once.
const MAX_BYTES: usize = 4096;

/// A guest with an entropy device that gets its bytes from `source`, an object of QEMU's.
fn with_source(cell: &Cell, machine: &str, source: &str, properties: &str) -> Result<Qemu> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.arg("-object", &format!("{source},id=source0"));
    let comma = if properties.is_empty() { "" } else { "," };
    qemu.virtio("rng", "dev0", &format!("rng=source0{comma}{properties}"));
    Ok(qemu)
}

/// The bytes that a command of the script showed.
fn shown(guest: &Booted, command: &str) -> Result<Vec<u8>> {
    let text = guest.said(command)?;
    let mut bytes = Vec::new();
    for line in text.lines() {
        // Where it is, and two spaces; then sixteen bytes at most, and two spaces.
        let columns = line.split_once("  ");
        let (_, rest) = columns.with_context(|| format!("{line:?} shows no bytes"))?;
        let digits = rest.split("  ").next().unwrap_or_default();
        for byte in digits.split(' ') {
            let byte = u8::from_str_radix(byte, 16);
            bytes.push(byte.with_context(|| format!("{line:?} shows no bytes"))?);
        }
    }
    Ok(bytes)
}

/// QEMU's own source: as many as asked for, all kinds of them, others each time.
fn bytes(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = with_source(cell, machine, "rng-builtin", "")?;
    qemu.script("strict; rng; rng 1; rng 4095; rng 4096; virtio rng0; selftest; echo all shown");
    let mut guest = cell.boot(qemu)?;
    guest.expect("rng0: virtio-rng at ")?;
    guest.expect("> echo all shown")?;
    guest.expect("all shown")?;
    for (command, count) in [("rng", 32), ("rng 1", 1), ("rng 4095", 4095)] {
        let shown = shown(&guest, command)?.len();
        ensure!(shown == count, "{command} shows {shown} bytes");
    }
    let (one, two) = (shown(&guest, "rng 4095")?, shown(&guest, "rng 4096")?);
    ensure!(two.len() == MAX_BYTES, "rng 4096 shows {} bytes", two.len());
    ensure!(one != two[..one.len()], "the same bytes twice");
    for bytes in [one, two] {
        let mut kinds = bytes.clone();
        kinds.sort();
        kinds.dedup();
        // Of 4095 random bytes sixteen are of each kind.
        let kinds = kinds.len();
        ensure!(kinds > 200, "only {kinds} kinds of bytes");
    }
    guest.check_said("virtio rng0", "requestq")?;
    guest.check_said("selftest", "rng0: gives random bytes")?;
    guest.power_off()
}

/// A file of random bytes for the host's side.
fn entropy(cell: &Cell) -> Result<(PathBuf, Vec<u8>)> {
    let path = cell.file("entropy");
    let mut random = fastrand::Rng::with_seed(6);
    let all: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(1 << 20)
        .collect();
    std::fs::write(&path, &all)?;
    Ok((path, all))
}

/// A file of the host's as the source: the guest shows its bytes, none lost or twice, however few come at a time.
fn file(cell: &Cell, machine: &str, properties: &str) -> Result<()> {
    let (path, all) = entropy(cell)?;
    let source = format!("rng-random,filename={}", escape(utf8(&path)?));
    let mut qemu = with_source(cell, machine, &source, properties)?;
    qemu.script("strict; rng 4096; rng 100; rng 1; virtio rng0; echo all shown");
    let guest = cell.boot(qemu)?;
    shows_the_file(guest, &all)
}

/// The daemon for random bytes, whose queue is the shortest of all.
fn daemon(cell: &Cell) -> Result<()> {
    let (path, all) = entropy(cell)?;
    let daemon = Daemon::rng(cell.directory(), &path)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.share_memory(MEMORY);
    daemon.attach(&mut qemu, "vhost-user-rng-pci", "rng0", "")?;
    qemu.script("strict; rng 4096; rng 100; rng 1; virtio rng0; echo all shown");
    let mut guest = cell.boot(qemu)?;
    guest.expect("rng0: virtio-rng at ")?;
    guest.expect("random bytes, queue of 4")?;
    shows_the_file(guest, &all)
}

fn shows_the_file(mut guest: Booted, all: &[u8]) -> Result<()> {
    guest.expect("> echo all shown")?;
    guest.expect("all shown")?;
    let shown = [
        shown(&guest, "rng 4096")?,
        shown(&guest, "rng 100")?,
        shown(&guest, "rng 1")?,
    ]
    .concat();
    ensure!(shown.len() == MAX_BYTES + 101, "{} bytes", shown.len());
    // The boot took eight for the numbers of its connections.
    let place = all.windows(shown.len()).position(|part| part == shown);
    ensure!(place == Some(8), "the bytes are at {place:?} of the file");
    guest.power_off()
}

/// One byte in twenty seconds: the boot does not wait for it, nor does anything else.
fn slow(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = with_source(cell, machine, "rng-builtin", "max-bytes=1,period=20000")?;
    qemu.user_net("n0", FORWARDS);
    qemu.virtio("net", "net0", "netdev=n0");
    let mut guest = cell.boot(qemu)?;
    guest.expect("rng0: too slow for seeds")?;
    guest.expect("net0: address 10.0.2.15/24 gateway 10.0.2.2 (dhcp)")?;
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    // More often than the queue is long.
    for _ in 0..10 {
        guest.type_line("rng 4096")?;
        std::thread::sleep(Duration::from_millis(200));
        let page = curl(&format!("http://127.0.0.1:{port}/"), &[])?;
        ensure!(page.status == 200, "the page answers {}", page.status);
        guest.interrupt()?;
        guest.command("uptime", "up ")?;
    }
    guest.type_line("bg rng 4096")?;
    guest.command("ping 10.0.2.2 2", "2 sent, 2 received")?;
    guest.power_off()
}
