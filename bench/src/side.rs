//! Those who are compared, and how each is started with a disk or a memory and given work to do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use vringlet_tests::accelerator::Accelerator;
use vringlet_tests::cell::{self, Cell};
use vringlet_tests::guest::End;
use vringlet_tests::net::FORWARDS;
use vringlet_tests::project_root;
use vringlet_tests::qemu::{Machine, Qemu, escape, utf8};

use crate::count::{self, Marked, Plugin, What};
use crate::echo::EchoClient;

/// The processor that all guests see. Under TCG a better one is slower: it has instructions whose emulation takes long.
pub(crate) const CPU: &str = "qemu64";

/// The best that is known for Linux here: no mitigations, one processor, a clock that it need not find out about, no audit.
const LINUX: &str = "mitigations=off nr_cpus=1 nokaslr tsc=reliable clocksource=tsc no_timer_check audit=0 apparmor=0 quiet panic=-1";

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// This kernel and its drivers.
    Ours,
    /// A Linux guest.
    Linux,
    /// This kernel with the driver of `virtio-drivers`.
    Stock,
    /// This kernel with a ring that is filled once.
    Ceiling,
}

impl Side {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Linux, Self::Stock, Self::Ceiling];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "vringlet",
            Self::Linux => "Linux",
            Self::Stock => "virtio-drivers",
            Self::Ceiling => "ceiling",
        }
    }

    /// Whether a guest of this side can do more than one piece of work.
    pub(crate) const fn goes_on(self) -> bool {
        matches!(self, Self::Ours | Self::Linux)
    }
}

/// What the guest is given to work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A disk with nothing behind it, that takes so many nanoseconds for a request.
    NullDisk(u64),
    /// A disk that is a file in memory.
    FileDisk,
    /// Persistent memory that is the host's memory.
    Memory,
    /// A card on a user-mode network, which leads to the echo service.
    Network,
}

/// What a guest did.
pub(crate) struct Worked {
    /// What the plugin saw of each piece of work.
    pub(crate) marked: Vec<Marked>,
    /// When the guest was started, in nanoseconds since 1970.
    pub(crate) started: u64,
    /// The lines that it printed.
    pub(crate) said: Vec<String>,
}

/// The files that guests are started from.
pub(crate) struct Guests {
    ours: PathBuf,
    peers: PathBuf,
    linux: PathBuf,
    /// What the Linux guest's kernel is called.
    pub(crate) release: String,
    plugin: Plugin,
}

impl Guests {
    /// Builds what is missing; the guest with others' drivers only if it is wanted.
    pub(crate) fn build(with_peers: bool) -> Result<Self> {
        let root = project_root();
        let peers = root.join("target/bench/peers.elf");
        let linux = root.join("target/bench/linux");
        let run = |words: &[&str]| -> Result<()> {
            let mut words = words.iter();
            let program = words.next().context("no program")?;
            let mut command = Command::new(root.join(program));
            let status = command.args(words).current_dir(&root).status()?;
            ensure!(status.success(), "{program}: {status}");
            Ok(())
        };
        run(&["bench/linux/build.sh"])?;
        if with_peers {
            run(&["scripts/guest.sh", "target/bench/peers.elf", "peers"])?;
        }
        run(&["scripts/guest.sh"])?;
        let release = std::fs::read_to_string(linux.join("release"))?;
        Ok(Self {
            ours: cell::guest()?,
            peers,
            linux,
            release: release.trim().to_string(),
            plugin: Plugin::build()?,
        })
    }

    /// Has a guest of this side do the work.
    pub(crate) fn work(
        &self,
        side: Side,
        device: Device,
        machine: &str,
        what: What,
        work: &[&str],
    ) -> Result<Worked> {
        let mut result = None;
        let name = format!("bench/{}", side.name());
        Cell::run(&name, |cell| {
            let out = cell.file("counts");
            let mut qemu = self.start(side, machine, device, work)?;
            // In memory wherever the system has a place for that: of a disk, its own flush is all that would be measured.
            let shared = Path::new("/dev/shm");
            let folder = if shared.is_dir() {
                shared
            } else {
                cell.directory()
            };
            let folder = tempfile::tempdir_in(folder)?;
            plug(&mut qemu, device, folder.path())?;
            self.plugin.plug(&mut qemu, what, &out)?;
            let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
            let mut guest = cell.boot(qemu)?;
            guest.ends_with(&End::PowerOff)?;
            let marked = count::read(&out)?;
            let (done, all) = (marked.len(), work.len());
            ensure!(done == all, "{done} of {all} pieces of work were done");
            let lines = guest.console().lines().into_iter();
            result = Some(Worked {
                marked,
                started: started as u64,
                said: lines.map(|line| line.text).collect(),
            });
            Ok(())
        })?;
        result.context("no result")
    }

    /// Has a guest send back `times` datagrams of 64 bytes, one after the other. Gives what the plugin saw, and how long that took.
    pub(crate) fn echo(&self, side: Side, what: What, times: u64) -> Result<(Marked, Duration)> {
        let mut result = None;
        Cell::run(&format!("bench/{}", side.name()), |cell| {
            let out = cell.file("counts");
            let work: &[&str] = match side {
                Side::Linux => &["udp:echo:7"],
                _ => &[],
            };
            let mut qemu = self.start(side, "q35", Device::Network, work)?;
            plug(&mut qemu, Device::Network, cell.directory())?;
            self.plugin.plug(&mut qemu, what, &out)?;
            let mut guest = cell.boot(qemu)?;
            let client = EchoClient::open(&mut guest)?;
            client.begin()?;
            if side == Side::Ours {
                guest.type_line("bench mark start")?;
                guest.expect_prompt()?;
            }
            let begun = Instant::now();
            client.round_trips(times)?;
            let took = begun.elapsed();
            if side == Side::Ours {
                guest.type_line("bench mark end")?;
                guest.type_line("poweroff")?;
            } else {
                client.end()?;
            }
            guest.ends_with(&End::PowerOff)?;
            let marked = count::read(&out)?.pop().context("nothing was marked")?;
            result = Some((marked, took));
            Ok(())
        })?;
        result.context("no result")
    }

    fn start(&self, side: Side, machine: &str, device: Device, work: &[&str]) -> Result<Qemu> {
        let (machine, firmware) = match machine.split_once('+') {
            Some((machine, firmware)) => (machine, Some(firmware)),
            None => (machine, None),
        };
        let machine: Machine = machine.parse()?;
        let kernel = match side {
            Side::Ours => &self.ours,
            Side::Linux => &self.linux.join("vmlinux"),
            Side::Stock | Side::Ceiling => &self.peers,
        };
        let mut qemu = Qemu::new(&machine, kernel)?;
        Accelerator::tcg(CPU).plug(&mut qemu);
        if let Some(firmware) = firmware {
            qemu.arg("-bios", firmware);
        }
        let memory = match side {
            Side::Linux => "256M",
            _ => "128M",
        };
        qemu.arg("-m", &format!("{memory},maxmem=1G"));
        match side {
            Side::Linux => {
                let modules = match device {
                    Device::NullDisk(_) | Device::FileDisk => "blk",
                    Device::Memory => "pmem",
                    Device::Network => "net",
                };
                qemu.arg("-initrd", utf8(&self.linux.join("initrd"))?);
                let work = work.join(",");
                qemu.arg("-append", &format!("{LINUX} modules={modules} work={work}"));
            }
            Side::Ours if work.is_empty() => {}
            Side::Ours => qemu.script(&format!("strict; {}; poweroff", work.join("; "))),
            Side::Stock | Side::Ceiling => {
                qemu.cmdline("peer=yes");
                qemu.script(&format!("strict; {}; poweroff", work.join("; ")));
            }
        }
        Ok(qemu)
    }
}

fn plug(qemu: &mut Qemu, device: Device, folder: &Path) -> Result<()> {
    match device {
        Device::NullDisk(latency) => {
            let zeros = format!(
                "driver=null-co,node-name=d0,size=8589934592,read-zeroes=on,latency-ns={latency}"
            );
            qemu.arg("-blockdev", &zeros);
            qemu.virtio("blk", "dev0", "drive=d0");
        }
        Device::FileDisk => {
            let file = folder.join("disk.img");
            std::fs::File::create(&file)?.set_len(64 << 20)?;
            let name = escape(utf8(&file)?);
            qemu.arg(
                "-blockdev",
                &format!("driver=file,node-name=d0,filename={name}"),
            );
            qemu.virtio("blk", "dev0", "drive=d0");
        }
        Device::Network => {
            qemu.user_net("n0", FORWARDS);
            qemu.virtio("net", "dev0", "netdev=n0");
        }
        Device::Memory => {
            qemu.arg("-object", "memory-backend-memfd,id=mem0,share=on,size=16M");
            qemu.virtio("pmem", "dev0", "memdev=mem0");
        }
    }
    Ok(())
}
