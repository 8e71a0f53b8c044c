//! The work that is counted: which commands of the guest do it, on which machine.

use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, ensure};
use vringlet_tests::accelerator::Accelerator;
use vringlet_tests::cell::{Booted, Cell};
use vringlet_tests::guest::End;
use vringlet_tests::net::{FORWARDS, WEB, clients};
use vringlet_tests::qemu::Qemu;

use crate::count::{self, Counts, Marked, Plugin, What};
use crate::echo::EchoClient;

/// What every guest of a budget runs on: the counts are those of this processor.
const CPU: &str = "qemu64";
const MACHINE: &str = "q35";
const MEMORY: &str = "128M";

/// A piece of work.
pub(crate) struct Work {
    /// What the budget calls it.
    pub(crate) name: &'static str,
    /// How often what is counted is done.
    pub(crate) operations: u64,
    /// What does it.
    by: By,
}

enum By {
    /// A command of the guest, which executes the marks.
    Command(&'static str),
    /// The same, and what precedes it counts, from the machine's reset on.
    Boot(&'static str),
    /// A client of the guest, which does it so often.
    Client(fn(&mut Booted, u64) -> Result<()>),
}

/// Work that one guest does, one piece after the other.
pub(crate) struct Group {
    /// What its logs are called.
    name: &'static str,
    devices: fn(&mut Qemu),
    /// The work.
    pub(crate) work: &'static [Work],
}

const fn command(name: &'static str, operations: u64, command: &'static str) -> Work {
    Work {
        name,
        operations,
        by: By::Command(command),
    }
}

/// All of it.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "slow-disk",
        devices: |qemu| disk(qemu, 200_000),
        work: &[
            command(
                "blk randread 4k iodepth=1",
                500,
                "bench blk blk0 rw=randread iodepth=1 count=500",
            ),
            command(
                "blk randwrite 4k fsync=1 iodepth=1",
                250,
                "bench blk blk0 rw=randwrite fsync=1 iodepth=1 count=250",
            ),
        ],
    },
    Group {
        name: "fast-disk",
        devices: |qemu| disk(qemu, 0),
        work: &[
            Work {
                name: "boot to the first block",
                operations: 1,
                by: By::Boot("bench blk blk0 count=1 iodepth=1"),
            },
            command(
                "blk randread 4k iodepth=16",
                20_000,
                "bench blk blk0 rw=randread iodepth=16 count=20000",
            ),
            command(
                "blk randread 4k iodepth=32",
                20_000,
                "bench blk blk0 rw=randread iodepth=32 count=20000",
            ),
            command(
                "blk read 1M iodepth=4",
                2000,
                "bench blk blk0 rw=read bs=1M iodepth=4 count=2000",
            ),
        ],
    },
    Group {
        name: "pmem",
        devices: persistent_memory,
        work: &[
            command(
                "pmem randread 4k",
                1000,
                "bench pmem pmem0 rw=randread count=1000",
            ),
            command(
                "pmem randwrite 4k",
                1000,
                "bench pmem pmem0 rw=randwrite count=1000",
            ),
            command("pmem flush", 500, "bench pmem pmem0 count=500"),
        ],
    },
    Group {
        name: "gpu",
        devices: display,
        work: &[
            command("gpu 1024x768", 50, "bench gpu count=50"),
            command("gpu 16x16", 500, "bench gpu area=16x16 count=500"),
        ],
    },
    Group {
        name: "net",
        devices: network,
        work: &[
            Work {
                name: "udp echo 64",
                operations: 1000,
                by: By::Client(udp_echo),
            },
            Work {
                name: "http /status.json keep-alive",
                operations: 100,
                by: By::Client(status_page),
            },
        ],
    },
];

/// One with nothing behind it, which takes `latency` nanoseconds for a request. A real one takes longer than the processor needs
/// to fall asleep; where it does not, it is a matter of luck whether the processor sleeps between one request and the next.
fn disk(qemu: &mut Qemu, latency: u64) {
    let zeros =
        format!("driver=null-co,node-name=d0,size=8589934592,read-zeroes=on,latency-ns={latency}");
    qemu.arg("-blockdev", &zeros);
    qemu.virtio("blk", "dev0", "drive=d0");
}

fn persistent_memory(qemu: &mut Qemu) {
    qemu.arg("-m", &format!("{MEMORY},maxmem=1G"));
    qemu.arg("-object", "memory-backend-memfd,id=mem0,share=on,size=2M");
    qemu.virtio("pmem", "dev0", "memdev=mem0");
}

fn display(qemu: &mut Qemu) {
    qemu.virtio("gpu", "dev0", "xres=1024,yres=768");
}

fn network(qemu: &mut Qemu) {
    qemu.user_net("n0", FORWARDS);
    qemu.virtio("net", "dev0", "netdev=n0");
}

impl Group {
    /// Has a guest do the work, and counts.
    pub(crate) fn count(&self, plugin: &Plugin) -> Result<Vec<Counts>> {
        let mut counts = Vec::new();
        Cell::run(&format!("budget/{}", self.name), |cell| {
            let out = cell.file("counts");
            let machine = MACHINE.parse()?;
            let mut qemu = cell.qemu_on(&Accelerator::tcg(CPU), &machine, MEMORY)?;
            (self.devices)(&mut qemu);
            plugin.plug(&mut qemu, What::Everything, &out)?;
            let mut script = "strict".to_string();
            for work in self.work {
                if let By::Command(command) | By::Boot(command) = work.by {
                    script = format!("{script}; {command}");
                }
            }
            qemu.script(&script);
            let mut guest = cell.boot(qemu)?;
            for work in self.work {
                if let By::Client(client) = work.by {
                    guest.type_line("bench mark start")?;
                    guest.expect_prompt()?;
                    client(&mut guest, work.operations)?;
                    guest.type_line("bench mark end")?;
                    guest.expect_prompt()?;
                }
            }
            guest.type_line("poweroff")?;
            guest.ends_with(&End::PowerOff)?;
            let marked = count::read(&out)?;
            let (done, all) = (marked.len(), self.work.len());
            ensure!(done == all, "{done} of {all} pieces of work were counted");
            let of = |(marked, work): (&Marked, &Work)| match work.by {
                By::Boot(_) => marked.total,
                By::Command(_) | By::Client(_) => marked.between,
            };
            counts = marked.iter().zip(self.work).map(of).collect();
            Ok(())
        })?;
        Ok(counts)
    }
}

fn udp_echo(guest: &mut Booted, times: u64) -> Result<()> {
    EchoClient::open(guest)?.round_trips(times)
}

/// One request after the other, over one connection.
fn status_page(guest: &mut Booted, times: u64) -> Result<()> {
    let port = guest.process().qmp.forwarded_port("tcp", WEB)?;
    let stream = clients::connect(port)?;
    let mut reader = BufReader::new(&stream);
    for _ in 0..times {
        (&stream).write_all(b"GET /status.json HTTP/1.1\r\nHost: guest\r\n\r\n")?;
        let mut length = None;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse::<u64>()?);
            }
            if line.is_empty() {
                break;
            }
        }
        let length = length.context("the page has no length")?;
        let mut page = Vec::new();
        reader.by_ref().take(length).read_to_end(&mut page)?;
        ensure!(page.starts_with(b"{"), "the page is no JSON");
    }
    Ok(())
}
