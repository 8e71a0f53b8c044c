//! The same work, by each in turn.
//!
//! Every round goes through all sides and back again (A B B A), so that what else the machine does meets all of them alike. Counts are
//! taken once, in a run of their own.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::count::{self, What};
use crate::report::{self, Results};
use crate::side::{Device, Guests, Side};

const ROUNDS: u32 = 6;
const QUICK_ROUNDS: u32 = 1;

/// Nanoseconds that a disk takes for a request where it is to be slower than the processor falls asleep.
const SLOW: u64 = 200_000;

/// A piece of work.
struct Row {
    name: &'static str,
    operations: u64,
    /// What has each side do it, if it can.
    by: fn(Side) -> Option<String>,
    /// Counted with a slow disk: else it is a matter of luck how often the guest sleeps.
    slow: bool,
}

/// Work on one device, one piece after the other.
struct Set {
    title: &'static str,
    note: &'static str,
    machine: &'static str,
    device: Device,
    measure: Measure,
    /// Rows of which it is told how long each request took.
    latencies: &'static [&'static str],
    rows: Vec<Row>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Measure {
    /// Operations in a second.
    Rate,
    /// Milliseconds from the start of QEMU to the end of the work.
    Boot,
}

/// What a side did.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Did {
    /// Operations in a second, or milliseconds, in the order of the rounds.
    pub(crate) samples: Vec<f64>,
    /// Instructions, kicks, interrupts and exits for an operation.
    pub(crate) counts: Option<[f64; 4]>,
    /// Of a thousand requests, so many took at most so many nanoseconds.
    pub(crate) latencies: Vec<(f64, f64)>,
}

/// What came of a row.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) sides: BTreeMap<String, Did>,
}

impl Outcome {
    /// What this side did so far.
    fn of(&mut self, side: Side) -> &mut Did {
        self.sides.entry(side.name().to_string()).or_default()
    }
}

/// What came of a set.
#[derive(Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) note: String,
    pub(crate) measure: Measure,
    pub(crate) rows: Vec<Outcome>,
}

/// Work on a disk: `rw`, bytes, depth, requests, and for writes a flush after each.
fn disk(name: &'static str, side: Side, words: (&str, u64, u64, u64, bool)) -> Option<String> {
    let (rw, bytes, depth, count, fsync) = words;
    let options = format!("rw={rw} bs={bytes} iodepth={depth} count={count}");
    let options = match fsync {
        true => format!("{options} fsync=1"),
        false => options,
    };
    match side {
        Side::Ours => Some(format!("bench {name} {name}0 {options}")),
        Side::Linux => {
            let file = match name {
                "pmem" => "/dev/pmem0",
                _ => "/dev/vda",
            };
            let fsync = if fsync { ":1" } else { "" };
            Some(format!("{file}:{rw}:{bytes}:{depth}:{count}{fsync}"))
        }
        // Its queue has 16 entries, and a request is one of them.
        Side::Stock if name == "blk" && depth <= 16 => Some(format!("peer stock {options}")),
        Side::Ceiling if name == "blk" && rw.ends_with("read") => Some(format!(
            "peer ring bs={bytes} iodepth={depth} count={count}"
        )),
        Side::Stock | Side::Ceiling => None,
    }
}

macro_rules! disk_row {
    ($name:literal, $device:literal, $count:literal, $rw:literal, $bytes:expr, $depth:literal, $fsync:literal, $slow:literal) => {
        Row {
            name: $name,
            operations: $count,
            by: |side| disk($device, side, ($rw, $bytes, $depth, $count, $fsync)),
            slow: $slow,
        }
    };
}

fn sets() -> Vec<Set> {
    let boot = |title, machine| Set {
        title,
        note: "Milliseconds from the start of QEMU until the first block of the disk was read. Exits are port instructions and halts only.",
        machine,
        device: Device::NullDisk(0),
        measure: Measure::Boot,
        latencies: &[],
        rows: vec![Row {
            name: "first block",
            operations: 1,
            by: |side| match side {
                Side::Ours => Some("bench blk blk0 iodepth=1 count=1".into()),
                Side::Linux => Some("/dev/vda:read:4096:1:1".into()),
                Side::Stock | Side::Ceiling => None,
            },
            slow: false,
        }],
    };
    vec![
        Set {
            title: "Disk with nothing behind it",
            note: "QEMU's null-co. At depth 1, counts are those with a disk that takes 200 µs for a request.",
            machine: "q35",
            device: Device::NullDisk(0),
            measure: Measure::Rate,
            latencies: &["randread 4k iodepth=1", "randread 4k iodepth=32"],
            rows: vec![
                disk_row!(
                    "randread 4k iodepth=1",
                    "blk",
                    4000,
                    "randread",
                    4096,
                    1,
                    false,
                    true
                ),
                disk_row!(
                    "randread 4k iodepth=2",
                    "blk",
                    8000,
                    "randread",
                    4096,
                    2,
                    false,
                    false
                ),
                disk_row!(
                    "randread 4k iodepth=4",
                    "blk",
                    16000,
                    "randread",
                    4096,
                    4,
                    false,
                    false
                ),
                disk_row!(
                    "randread 4k iodepth=8",
                    "blk",
                    32000,
                    "randread",
                    4096,
                    8,
                    false,
                    false
                ),
                disk_row!(
                    "randread 4k iodepth=16",
                    "blk",
                    32000,
                    "randread",
                    4096,
                    16,
                    false,
                    false
                ),
                disk_row!(
                    "randread 4k iodepth=32",
                    "blk",
                    32000,
                    "randread",
                    4096,
                    32,
                    false,
                    false
                ),
                disk_row!(
                    "randread 4k iodepth=64",
                    "blk",
                    32000,
                    "randread",
                    4096,
                    64,
                    false,
                    false
                ),
                disk_row!(
                    "read 128k iodepth=8",
                    "blk",
                    8000,
                    "read",
                    131_072,
                    8,
                    false,
                    false
                ),
                disk_row!(
                    "read 1M iodepth=4",
                    "blk",
                    2000,
                    "read",
                    1_048_576,
                    4,
                    false,
                    false
                ),
            ],
        },
        Set {
            title: "Disk that is a file in memory",
            note: "A raw image on tmpfs, QEMU's default cache mode.",
            machine: "q35",
            device: Device::FileDisk,
            measure: Measure::Rate,
            latencies: &[],
            rows: vec![
                disk_row!(
                    "randread 4k iodepth=1",
                    "blk",
                    2000,
                    "randread",
                    4096,
                    1,
                    false,
                    false
                ),
                disk_row!(
                    "randread 4k iodepth=16",
                    "blk",
                    8000,
                    "randread",
                    4096,
                    16,
                    false,
                    false
                ),
                disk_row!(
                    "randwrite 4k fsync=1",
                    "blk",
                    2000,
                    "randwrite",
                    4096,
                    1,
                    true,
                    false
                ),
            ],
        },
        Set {
            title: "Persistent memory",
            note: "Memory of the host's. Linux reads and writes /dev/pmem0 with O_DIRECT.",
            machine: "q35",
            device: Device::Memory,
            measure: Measure::Rate,
            latencies: &[],
            rows: vec![
                Row {
                    name: "randread 4k",
                    operations: 4000,
                    by: |side| memory(side, "randread", 4000, false),
                    slow: false,
                },
                Row {
                    name: "randwrite 4k",
                    operations: 4000,
                    by: |side| memory(side, "randwrite", 4000, false),
                    slow: false,
                },
                Row {
                    name: "randwrite 4k fsync=1",
                    operations: 1000,
                    by: |side| memory(side, "randwrite", 1000, true),
                    slow: false,
                },
            ],
        },
        boot("Boot, q35 with SeaBIOS", "q35"),
        boot("Boot, q35 with qboot", "q35+qboot.rom"),
    ]
}

/// Work on persistent memory, one piece at a time.
fn memory(side: Side, rw: &str, count: u64, fsync: bool) -> Option<String> {
    match side {
        Side::Ours => {
            let fsync = if fsync { " fsync=1" } else { "" };
            Some(format!(
                "bench pmem pmem0 rw={rw} bs=4k count={count}{fsync}"
            ))
        }
        Side::Linux => disk("pmem", side, (rw, 4096, 1, count, fsync)),
        Side::Stock | Side::Ceiling => None,
    }
}

/// Does all of it, or less, or of that only what has this word in its title, and writes what came of it.
pub(crate) fn run(quick: bool, only: &str) -> Result<ExitCode> {
    if let Some(reason) = count::obstacle()? {
        println!("bench: not done: {reason}");
        return Ok(ExitCode::FAILURE);
    }
    let mut sets = sets();
    sets.retain(|set| set.title.contains(only));
    let has_peers = |set: &Set| !set.batches(Side::Stock, |_| true).is_empty();
    let guests = Guests::build(sets.iter().any(has_peers))?;
    let begun = Instant::now();
    let conditions = report::Conditions::now(quick, &guests)?;
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    let mut tables = Vec::new();
    for set in &sets {
        println!("bench: {}", set.title);
        tables.push(set.run(&guests, rounds)?);
    }
    if UDP.contains(only) {
        println!("bench: {UDP}");
        tables.push(echoes(&guests, rounds)?);
    }
    println!("bench: took {} s", begun.elapsed().as_secs());
    report::write(quick, &Results { conditions, tables })?;
    Ok(ExitCode::SUCCESS)
}

const UDP: &str = "UDP, user-mode network";

/// Datagrams that come back, by a client of the host's.
fn echoes(guests: &Guests, rounds: u32) -> Result<Table> {
    const TIMES: u64 = 2000;
    let sides = [Side::Ours, Side::Linux];
    let mut outcome = Outcome {
        name: "echo 64".into(),
        sides: BTreeMap::new(),
    };
    for _ in 0..rounds {
        for side in sides.into_iter().chain(sides.into_iter().rev()) {
            let (_, took) = guests.echo(side, What::Time, TIMES)?;
            let rate = TIMES as f64 / took.as_secs_f64();
            outcome.of(side).samples.push(rate);
        }
    }
    for side in sides {
        let (marked, _) = guests.echo(side, What::Everything, TIMES)?;
        outcome.of(side).counts = Some(marked.between.for_each(TIMES));
    }
    Ok(Table {
        title: UDP.into(),
        note: "Datagrams of 64 bytes, one after the other, by a client of the host's through QEMU's own network."
            .into(),
        measure: Measure::Rate,
        rows: vec![outcome],
    })
}

impl Set {
    fn run(&self, guests: &Guests, rounds: u32) -> Result<Table> {
        let outcome = |row: &Row| Outcome {
            name: row.name.to_string(),
            sides: BTreeMap::new(),
        };
        let mut rows: Vec<Outcome> = self.rows.iter().map(outcome).collect();
        for _ in 0..rounds {
            for side in Side::ALL.into_iter().chain(Side::ALL.into_iter().rev()) {
                self.time(guests, side, &mut rows)?;
            }
        }
        for side in Side::ALL {
            self.count(guests, side, &mut rows)?;
        }
        for side in [Side::Ours, Side::Linux] {
            self.latencies(guests, side, &mut rows)?;
        }
        Ok(Table {
            title: self.title.to_string(),
            note: self.note.to_string(),
            measure: self.measure,
            rows,
        })
    }

    /// The rows that a side can do and that are wanted, with what has it do them: as many as one guest can do at a time.
    fn batches(&self, side: Side, wanted: impl Fn(&Row) -> bool) -> Vec<Vec<(usize, String)>> {
        let rows = self.rows.iter().enumerate().filter(|(_, row)| wanted(row));
        let able = rows.filter_map(|(index, row)| Some((index, (row.by)(side)?)));
        let able: Vec<_> = able.collect();
        match side.goes_on() {
            true if able.is_empty() => Vec::new(),
            true => vec![able],
            false => able.into_iter().map(|one| vec![one]).collect(),
        }
    }

    fn time(&self, guests: &Guests, side: Side, rows: &mut [Outcome]) -> Result<()> {
        for batch in self.batches(side, |_| true) {
            let work: Vec<&str> = batch.iter().map(|(_, work)| work.as_str()).collect();
            let worked = guests.work(side, self.device, self.machine, What::Time, &work)?;
            for (marked, (index, _)) in worked.marked.iter().zip(&batch) {
                let (Some(row), Some(outcome)) = (self.rows.get(*index), rows.get_mut(*index))
                else {
                    continue;
                };
                let sample = match self.measure {
                    Measure::Rate => row.operations as f64 * 1e9 / marked.ns as f64,
                    Measure::Boot => marked.date.saturating_sub(worked.started) as f64 / 1e6,
                };
                outcome.of(side).samples.push(sample);
            }
        }
        Ok(())
    }

    fn count(&self, guests: &Guests, side: Side, rows: &mut [Outcome]) -> Result<()> {
        for slow in [false, true] {
            let device = if slow {
                Device::NullDisk(SLOW)
            } else {
                self.device
            };
            for batch in self.batches(side, |row| row.slow == slow) {
                let work: Vec<&str> = batch.iter().map(|(_, work)| work.as_str()).collect();
                let worked = guests.work(side, device, self.machine, What::Everything, &work)?;
                for (marked, (index, _)) in worked.marked.iter().zip(&batch) {
                    let (Some(row), Some(outcome)) = (self.rows.get(*index), rows.get_mut(*index))
                    else {
                        continue;
                    };
                    let counts = match self.measure {
                        Measure::Rate => marked.between,
                        Measure::Boot => marked.total,
                    };
                    let counts = counts.for_each(row.operations);
                    outcome.of(side).counts = Some(counts);
                }
            }
        }
        Ok(())
    }

    fn latencies(&self, guests: &Guests, side: Side, rows: &mut [Outcome]) -> Result<()> {
        for mut batch in self.batches(side, |row| self.latencies.contains(&row.name)) {
            let more = match side {
                Side::Linux => ":latencies",
                _ => " latencies",
            };
            batch.iter_mut().for_each(|(_, work)| *work += more);
            let work: Vec<&str> = batch.iter().map(|(_, work)| work.as_str()).collect();
            let worked = guests.work(side, self.device, self.machine, What::Time, &work)?;
            let lines = worked.said.iter();
            let lines = lines.filter_map(|line| line.strip_prefix("latencies ns "));
            for (line, (index, _)) in lines.zip(&batch) {
                let pairs = line.split_whitespace();
                let pairs = pairs.filter_map(|word| {
                    let (per_mille, nanoseconds) = word.split_once('=')?;
                    Some((per_mille.parse().ok()?, nanoseconds.parse().ok()?))
                });
                if let Some(outcome) = rows.get_mut(*index) {
                    outcome.of(side).latencies = pairs.collect();
                }
            }
        }
        Ok(())
    }
}
