//! Machine type x device x personality x ring features: every way a device can be plugged in and its ring be laid out.

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::console::Console;
use vringlet_tests::disk::{Disk, MIB};
use vringlet_tests::net::FORWARDS;
use vringlet_tests::net::clients::judge_services;
use vringlet_tests::qemu::{Image, Machine};

use crate::Spec;

/// How a device presents itself on its bus.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Personality {
    /// PCI, virtio 1.x alone, with MSI-X.
    Modern,
    /// PCI, with the legacy interface beside the modern one, and MSI-X.
    Transitional,
    /// PCI, virtio 1.x alone, without MSI-X.
    WithoutMsix,
    /// A virtio-mmio slot.
    Mmio,
}

impl Personality {
    fn name(self) -> &'static str {
        match self {
            Personality::Modern => "modern",
            Personality::Transitional => "transitional",
            Personality::WithoutMsix => "vectors=0",
            Personality::Mmio => "mmio",
        }
    }

    fn properties(self) -> &'static str {
        match self {
            Personality::Modern => ",disable-legacy=on,disable-modern=off",
            Personality::Transitional => ",disable-legacy=off,disable-modern=off",
            Personality::WithoutMsix => ",disable-legacy=on,disable-modern=off,vectors=0",
            Personality::Mmio => "",
        }
    }

    fn has_msix(self) -> bool {
        matches!(self, Personality::Modern | Personality::Transitional)
    }
}

/// One point of the matrix.
#[derive(Clone, Copy)]
struct Point {
    machine: &'static str,
    personality: Personality,
    event_idx: bool,
    indirect: bool,
}

impl Point {
    fn name(self, device: &str) -> String {
        format!(
            "{}/{device}/{}/event_idx={},indirect={}",
            self.machine,
            self.personality.name(),
            on_off(self.event_idx),
            on_off(self.indirect),
        )
    }

    fn properties(self) -> String {
        format!(
            "{},event_idx={},indirect_desc={}",
            self.personality.properties(),
            on_off(self.event_idx),
            on_off(self.indirect),
        )
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

pub(crate) fn cells() -> Vec<Spec> {
    use Personality::{Mmio, Modern, Transitional, WithoutMsix};
    let plugs: [(&'static str, &[Personality]); 4] = [
        ("q35", &[Modern, Transitional, WithoutMsix]),
        ("pc", &[Modern, Transitional, WithoutMsix]),
        ("microvm", &[Mmio]),
        // No port I/O window there, so no legacy interface.
        ("microvm,pcie=on", &[Modern, WithoutMsix]),
    ];
    let mut cells = Vec::new();
    for (machine, personalities) in plugs {
        for &personality in personalities {
            for (event_idx, indirect) in
                [(true, true), (true, false), (false, true), (false, false)]
            {
                let point = Point {
                    machine,
                    personality,
                    event_idx,
                    indirect,
                };
                cells.push(Spec::new(point.name("blk"), move |cell| blk(cell, point)));
                cells.push(Spec::new(point.name("net"), move |cell| net(cell, point)));
            }
        }
    }
    cells
}

/// Reads a known disk, overwrites a part of it, and leaves behind what the host expects byte for byte.
fn blk(cell: &Cell, point: Point) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), 4 * MIB, 1)?;
    let machine: Machine = point.machine.parse()?;
    let mut qemu = cell.qemu(&machine, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", &format!("drive=d0{}", point.properties()));
    let hash = "blk hash blk0 depth=16";
    qemu.script(&format!(
        "strict; blk verify blk0 0 {} 1 depth=8; blk fill blk0 515 2053 2 depth=16 max=64k; blk flush blk0; {hash}",
        disk.sectors(),
    ));
    disk.expect_pattern(515..515 + 2053, 2);

    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    check_negotiated(&mut guest, point)?;
    check_interrupts(guest.console(), "blk0: virtio-blk at ", point)?;
    ensure!(
        guest
            .console()
            .find(&format!("verified sectors={}", disk.sectors()))
            .is_some(),
        "no `verified` line"
    );
    ensure!(
        guest.console().find("filled sectors=2053").is_some(),
        "no `filled` line"
    );
    let hashed = guest.console().output_of(hash)?;
    ensure!(
        hashed
            .iter()
            .any(|line| line.contains(&format!("sha256={}", disk.sha256()))),
        "the guest hashed other bytes than were to be on the disk: {hashed:?}"
    );
    guest.power_off()?;
    disk.check()
}

/// Gets an address, and serves and echoes over TCP and UDP.
fn net(cell: &Cell, point: Point) -> Result<()> {
    let machine: Machine = point.machine.parse()?;
    let mut qemu = cell.qemu(&machine, MEMORY)?;
    qemu.user_net("n0", FORWARDS);
    qemu.capture("n0", &cell.file("wire.pcap"))?;
    qemu.virtio(
        "net",
        "dev0",
        &format!("netdev=n0,mac=52:54:00:12:34:56{}", point.properties()),
    );

    let mut guest = cell.boot(qemu)?;
    guest.eventually("mac 52:54:00:12:34:56")?;
    guest.eventually("net0: address 10.0.2.15/24 gateway 10.0.2.2 (dhcp)")?;
    check_negotiated(&mut guest, point)?;
    check_interrupts(guest.console(), "net0: virtio-net at ", point)?;
    guest.command("ping 10.0.2.2 3", "3 sent, 3 received")?;

    // Up to the longest datagram that is not fragmented: 1500 bytes with the IP and UDP headers.
    let datagrams = [0, 1, 18, 512, 1471, 1472];
    judge_services(&mut guest.process().qmp, 300_000, &datagrams)?;
    guest.power_off()
}

/// QEMU's word on what was negotiated: no more than was offered, and no less of what the ring can do.
fn check_negotiated(guest: &mut Booted, point: Point) -> Result<()> {
    let features = guest.process().qmp.negotiated_features("dev0")?;
    for (name, wanted) in [
        ("VIRTIO_RING_F_EVENT_IDX", point.event_idx),
        ("VIRTIO_RING_F_INDIRECT_DESC", point.indirect),
        ("VIRTIO_F_VERSION_1", true),
    ] {
        let taken = features.iter().any(|feature| feature == name);
        ensure!(
            taken == wanted,
            "{name} is {}; negotiated: {features:?}",
            on_off(taken)
        );
    }
    Ok(())
}

/// MSI-X where the device has it, and only there.
fn check_interrupts(console: &Console, start: &str, point: Point) -> Result<()> {
    let line = console
        .find(start)
        .with_context(|| format!("no log line {start:?}"))?
        .text;
    ensure!(
        line.contains("(msix)") == point.personality.has_msix(),
        "interrupts of {}: {line:?}",
        point.personality.name()
    );
    Ok(())
}
