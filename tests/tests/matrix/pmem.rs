//! Persistent memory: the file behind it is what the guest wrote, and what the guest keeps in it survives its end.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Booted, Cell};
use vringlet_tests::disk::{Disk, MIB, SECTOR, pattern, sha256};
use vringlet_tests::guest::End;
use vringlet_tests::qemu::Qemu;

use crate::Spec;

/// QEMU puts persistent memory between the end of memory and this.
const MEMORY: &str = "128M,slots=8,maxmem=64G";

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "pc"] {
        cells.push(Spec::new(format!("{machine}/pmem/bytes"), move |cell| {
            bytes(cell, machine)
        }));
        cells.push(Spec::new(format!("{machine}/pmem/several"), move |cell| {
            several(cell, machine)
        }));
        cells.push(Spec::new(format!("{machine}/pmem/boots"), move |cell| {
            boots(cell, machine)
        }));
    }
    cells.push(Spec::new("q35/pmem/at-48G", high));
    cells.push(Spec::new("microvm,pcie=on/pmem/nowhere", nowhere));
    cells.push(Spec::new("q35/pmem/one-kick-each", kicks));
    cells.push(Spec::new("q35/pmem/bench", bench));
    cells.push(Spec::new("q35/pmem/flush-fails", flush_fails));
    cells.push(Spec::new("q35/pmem/out-of-range", out_of_range));
    cells.push(Spec::new("q35/pmem/not-the-store", not_the_store));
    cells.push(Spec::new("q35/pmem/format-broken-off", format_broken_off));
    cells.push(Spec::new("pc/pmem/killed", killed));
    cells
}

/// A guest with one persistent memory.
fn with_memory(cell: &Cell, machine: &str, file: &Path) -> Result<Qemu> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.persistent_memory("pmem0", file, "")?;
    Ok(qemu)
}

/// The test pattern of a disk from any byte to any byte.
pub(super) fn pattern_bytes(seed: u64, bytes: Range<u64>) -> Vec<u8> {
    let sector = SECTOR as u64;
    let first = bytes.start / sector;
    pattern(seed, first..bytes.end.div_ceil(sector))
        .skip((bytes.start % sector) as usize)
        .take((bytes.end - bytes.start) as usize)
        .collect()
}

/// What was there is read, what is written and flushed is in the file, byte for byte, though QEMU is killed.
fn bytes(cell: &Cell, machine: &str) -> Result<()> {
    let file = cell.file("pmem.img");
    let disk = Disk::create(&file, 64 * MIB, 1)?;
    let mut expected: Vec<u8> = pattern(1, 0..64 * MIB).collect();
    let mut script = String::from("strict; pmem hash pmem0");
    // Beginnings and ends that are aligned to everything and to nothing.
    let extents = [
        (0, 1, 2),
        (4096, 1 << 20, 3),
        ((10 << 20) + 1, 1, 4),
        ((10 << 20) + 3, 3_333_333, 5),
        ((64 << 20) - 70_001, 70_001, 6),
    ];
    for (offset, len, seed) in extents {
        script += &format!(
            "; pmem fill pmem0 {offset} {len} {seed}; pmem verify pmem0 {offset} {len} {seed}"
        );
        let end = offset + len;
        expected[offset as usize..end as usize].copy_from_slice(&pattern_bytes(seed, offset..end));
    }
    let text = b"some words";
    expected[777_777..777_777 + text.len()].copy_from_slice(text);
    script += "; pmem write pmem0 777777 some words; pmem read pmem0 777770 32; pmem flush pmem0; \
               pmem hash pmem0 0 67108864; echo all flushed";
    let mut qemu = with_memory(cell, machine, &file)?;
    qemu.script(&script);
    let mut guest = cell.boot(qemu)?;
    guest.expect("pmem0: virtio-pmem at ")?;
    guest.expect("> echo all flushed")?;
    guest.expect("all flushed")?;
    guest.check_said("pmem hash pmem0", &disk.sha256())?;
    guest.check_said("pmem hash pmem0 0 67108864", &sha256(&expected))?;
    guest.check_said("pmem read pmem0 777770 32", "some.word")?;
    drop(guest);
    same(&file, &expected)
}

fn same(file: &Path, expected: &[u8]) -> Result<()> {
    let name = file.display();
    let found = std::fs::read(file).with_context(|| format!("reading {name}"))?;
    ensure!(
        found.len() == expected.len(),
        "{name} has {} bytes",
        found.len()
    );
    let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(
        wrong.is_none(),
        "{name}: wrong from byte {} on",
        wrong.unwrap_or_default()
    );
    Ok(())
}

/// Eight of them, so that some share an interrupt line, each with a size of its own.
fn several(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    let mut script = String::from("strict");
    let mut files = Vec::new();
    for number in 0..8 {
        let file = cell.file(&format!("pmem{number}.img"));
        let len = (number + 1) << 20;
        std::fs::write(&file, vec![0; len as usize])?;
        qemu.persistent_memory(&format!("pmem{number}"), &file, "")?;
        script += &format!("; pmem fill pmem{number} 0 {len} {number}");
        files.push((file, pattern_bytes(number, 0..len)));
    }
    for number in 0..8 {
        script += &format!("; pmem flush pmem{number}; pmem bench pmem{number} count=20 depth=3");
    }
    qemu.script(&format!("{script}; selftest; pmem info; virtio; poweroff"));
    cell.boot(qemu)?.ends_with(&End::PowerOff)?;
    files
        .iter()
        .try_for_each(|(file, expected)| same(file, expected))
}

/// Far above what 32 bits can address.
fn high(cell: &Cell) -> Result<()> {
    let file = cell.file("pmem.img");
    Disk::create(&file, 8 * MIB, 1)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.persistent_memory("pmem0", &file, "memaddr=0xc00000000")?;
    qemu.script("strict; pmem fill pmem0 0 8M 9; pmem flush pmem0; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.expect("(intx): 8 MiB at 0xc00000000")?;
    guest.ends_with(&End::PowerOff)?;
    same(&file, &pattern_bytes(9, 0..8 << 20))
}

/// A machine that does not map the memory: the device says it is at 0, and the guest does not believe that.
fn nowhere(cell: &Cell) -> Result<()> {
    let file = cell.file("pmem.img");
    let disk = Disk::create(&file, MIB, 1)?;
    let mut qemu = with_memory(cell, "microvm,pcie=on", &file)?;
    qemu.cmdline("store=pmem0");
    qemu.script("pmem read pmem0 0; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.expect("region of 0x100000 bytes at 0x0: the range overlaps memory")?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("pmem read pmem0 0", "error: no persistent memory pmem0")?;
    disk.check()
}

/// However many callers there are: one notification for each request, and fewer requests than callers.
fn kicks(cell: &Cell) -> Result<()> {
    let file = cell.file("pmem.img");
    Disk::create(&file, MIB, 1)?;
    let mut qemu = with_memory(cell, "q35", &file)?;
    let (one, many) = (
        "pmem bench pmem0 count=200",
        "pmem bench pmem0 depth=16 count=200",
    );
    qemu.script(&format!(
        "strict; {one}; {many}; pmem flush pmem0; poweroff"
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let mut requests = Vec::new();
    for command in [one, many] {
        let output = guest.console().output_of(command)?;
        let line = output.iter().find(|line| line.contains("op=flush"));
        let line = line.with_context(|| format!("{command} said {output:?}"))?;
        let value = |name: &str| -> Result<u64> {
            let value = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            Ok(value
                .with_context(|| format!("no {name} in {line:?}"))?
                .parse()?)
        };
        ensure!(value("kicks=")? == value("requests=")?, "{line}");
        requests.push(value("requests=")?);
    }
    ensure!(requests[0] == 200, "one caller: {} requests", requests[0]);
    ensure!(requests[1] < 50, "16 callers: {} requests", requests[1]);
    same(&file, &pattern_bytes(1, 0..1 << 20))
}

/// The benchmark reads and writes where it says, flushes as often as it says, and without `rw` leaves everything as it was.
fn bench(cell: &Cell) -> Result<()> {
    const LEN: u64 = 1 << 20;
    let file = cell.file("pmem.img");
    Disk::create(&file, MIB, 1)?;
    let mut qemu = with_memory(cell, "q35", &file)?;
    let (write, all) = (
        "bench pmem pmem0 rw=write bs=1000 count=300 fsync=100",
        "pmem bench pmem0 iodepth=3 count=20",
    );
    qemu.script(&format!(
        "strict; {all}; pmem bench pmem0 rw=randread; {write}; poweroff"
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said(all, "flushes=20")?;
    guest.check_said(
        "pmem bench pmem0 rw=randread",
        "size=4096 copies=1000 requests=0 ",
    )?;
    guest.check_said(write, "copies=300 requests=3 ")?;
    let mut expected = pattern_bytes(1, 0..LEN);
    expected[..300_000].fill(0x5a);
    same(&file, &expected)
}

/// Memory that no file is behind can't be flushed: QEMU says so, and so does the guest.
fn flush_fails(cell: &Cell) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.arg("-object", "memory-backend-ram,id=mem-pmem0,size=2M");
    qemu.virtio("pmem", "pmem0", "memdev=mem-pmem0");
    qemu.script(
        "pmem write pmem0 0 x; pmem flush pmem0; pmem read pmem0 0 1; virtio pmem0; poweroff",
    );
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("pmem flush pmem0", "flush failed (ret 0x1)")?;
    guest.check_said("pmem read pmem0 0 1", "78")?;
    guest.check_said("virtio pmem0", "errors=1")
}

fn out_of_range(cell: &Cell) -> Result<()> {
    let file = cell.file("pmem.img");
    let disk = Disk::create(&file, MIB, 1)?;
    let mut qemu = with_memory(cell, "q35", &file)?;
    let refused = [
        "pmem read pmem0 1048576 1",
        "pmem read pmem0 1048575 2",
        "pmem read pmem0 18446744073709551615 2",
        "pmem read pmem0 0 1G",
        "pmem write pmem0 1048573 four",
        "pmem write pmem0 0",
        "pmem fill pmem0 1048575 2 1",
        "pmem fill pmem0 1 18446744073709551615 1",
        "pmem verify pmem0 0 1048577 1",
        "pmem verify pmem0 0 512 2",
        "pmem hash pmem0 1 1M",
        "pmem bench pmem0 depth=0",
        "pmem bench pmem0 bs=4k",
        "pmem bench pmem0 rw=read bs=0",
        "pmem bench pmem0 rw=read bs=2M",
        "pmem bench pmem0 rw=read fsync=1",
        "pmem bench pmem0 rw=write iodepth=2",
        "pmem flush pmem1",
        "pmem",
        "store",
    ];
    qemu.script(&format!(
        "{}; strict; pmem read pmem0 1048575 1; pmem read pmem0 1048576 0; pmem verify pmem0 0 1M 1; poweroff",
        refused.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for command in refused {
        let output = guest.console().output_of(command)?;
        let one_line = matches!(&output[..], [line] if line.starts_with("error: "));
        ensure!(
            one_line,
            "{command} should get one line that refuses it, not {output:?}"
        );
    }
    disk.check()
}

/// The number of boots and the lines typed, from one boot to the next.
fn boots(cell: &Cell, machine: &str) -> Result<()> {
    let file = cell.file("pmem.img");
    std::fs::write(&file, vec![0; 4 << 20])?;
    for boot in 1..=4 {
        let mut qemu = with_memory(cell, machine, &file)?;
        if boot == 1 {
            // From then on it is found by what is in it.
            qemu.cmdline("store=pmem0");
        }
        let mut guest = cell.boot(qemu)?;
        guest.expect(&format!(
            "store: pmem0: boot {boot}, {} lines of history",
            (boot - 1) * 4
        ))?;
        guest.expect_prompt()?;
        guest.command(
            &format!("echo line-of-boot-{boot}"),
            &format!("line-of-boot-{boot}"),
        )?;
        guest.command("history", &format!("  echo line-of-boot-{boot}"))?;
        for earlier in 1..=boot {
            let line = format!("  echo line-of-boot-{earlier}");
            ensure!(
                guest.console().find(&line).is_some(),
                "boot {boot} forgot {line:?}"
            );
        }
        // Arrow up twice: over `history` to the line before.
        guest.type_line("\x1b[A\x1b[A")?;
        guest.expect(&format!("line-of-boot-{boot}"))?;
        if boot % 2 == 0 {
            guest.type_line("poweroff")?;
            guest.ends_with(&End::PowerOff)?;
        } else {
            // The same number of lines, and no power-off.
            guest.command("poweroff nonsense", "usage: ")?;
        }
    }
    Ok(())
}

/// Memory that is not the store's, or is not named, is left alone until somebody says otherwise.
fn not_the_store(cell: &Cell) -> Result<()> {
    let (named, zeros) = (cell.file("named.img"), cell.file("zeros.img"));
    let disk = Disk::create(&named, MIB, 1)?;
    std::fs::write(&zeros, vec![0; 1 << 20])?;
    let start = |script: &str| -> Result<Booted> {
        let mut qemu = with_memory(cell, "q35", &named)?;
        qemu.persistent_memory("pmem1", &zeros, "")?;
        qemu.cmdline("store=pmem0");
        qemu.script(&format!("{script}; poweroff"));
        cell.boot(qemu)
    };
    let mut guest = start("pmem format pmem0; store")?;
    guest.expect("store: pmem0: holds something else")?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("pmem format pmem0", "error: pmem0: holds something else")?;
    guest.check_said("store", "error: ")?;
    disk.check()?;
    same(&zeros, &vec![0; 1 << 20])?;

    // It is made a store by force, in its first 64 KiB; then it is one, and is not overwritten by mistake.
    let mut guest = start("strict; pmem format pmem0 size=64k force; store")?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("store", "store: pmem0 boots=1 ")?;
    let mut guest = start(
        "pmem write pmem0 70000 x; pmem fill pmem0 0 1M 1; pmem format pmem1; strict; store",
    )?;
    guest.expect("store: pmem0: boot 2, ")?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("pmem write pmem0 70000 x", "error: pmem0: is the store")?;
    guest.check_said("pmem fill pmem0 0 1M 1", "error: pmem0: is the store")?;
    guest.check_said("pmem format pmem1", "error: pmem1: pmem0 is the store")?;
    let found = std::fs::read(&named)?;
    ensure!(
        found[64 << 10..] == pattern_bytes(1, 64 << 10..1 << 20),
        "written behind the store"
    );
    same(&zeros, &vec![0; 1 << 20])
}

/// Making a store is not left half done by Ctrl-C, which would leave memory that nobody uses and nobody else may.
fn format_broken_off(cell: &Cell) -> Result<()> {
    let file = cell.file("pmem.img");
    std::fs::File::create(&file)?.set_len(16 << 20)?;
    let mut guest = cell.boot(with_memory(cell, "q35", &file)?)?;
    for _ in 0..MAX_BREAKS {
        // Typed at once: it is broken off where it first waits.
        guest.type_line("pmem format pmem0 size=64k\r\x03")?;
        guest.expect("^C")?;
        // The rest of it comes when the shell waits next; who asks for the store then waits for its end.
        guest.command("sleep 1; store", "sleep 1; store")?;
        let reply = guest.expect("store")?.text;
        if reply.contains("store: pmem0 boots=1 ") {
            return guest.power_off();
        }
        // A command does not begin before there is room for what it prints; broken off there it has done nothing, and can be
        // given again.
        ensure!(reply.contains("there is no store"), "{reply}");
    }
    anyhow::bail!("it was always broken off before it began")
}

/// How often making a store is broken off, until one was begun.
const MAX_BREAKS: u32 = 20;

/// How often QEMU is killed.
const KILLS: u32 = 100;
/// Lines that the smallest store keeps in any case: half of an area of 16 KiB, in records of less than 300 bytes.
const SURE_LINES: usize = 27;

/// QEMU is killed at random moments, while it boots and while lines are typed. Every line whose command ran is in the file
/// right after, and in the history of the next boot; the count of boots misses none that was announced.
fn killed(cell: &Cell) -> Result<()> {
    let file = cell.file("pmem.img");
    std::fs::write(&file, vec![0; 1 << 20])?;
    let mut qemu = with_memory(cell, "pc", &file)?;
    qemu.script("strict; pmem format pmem0 size=36k; store; poweroff");
    cell.boot(qemu)?.ends_with(&End::PowerOff)?;

    let mut random = fastrand::Rng::with_seed(5);
    let mut history = History::default();
    let (mut min_boots, mut max_boots) = (1, 1);
    for kill in 0..=KILLS {
        let mut qemu = with_memory(cell, "pc", &file)?;
        qemu.script("history; store");
        let mut guest = cell.boot(qemu)?;
        max_boots += 1;
        if kill < KILLS && random.u8(..) < 64 {
            std::thread::sleep(Duration::from_millis(random.u64(..400)));
            continue;
        }
        let line = guest.expect("store: pmem0: boot ")?.text;
        let boots: u64 = line
            .split_once("boot ")
            .and_then(|(_, rest)| rest.split_once(','))
            .with_context(|| format!("no number in {line:?}"))?
            .0
            .parse()?;
        ensure!(
            (min_boots + 1..=max_boots).contains(&boots),
            "kill {kill}: boot {boots} and not {min_boots} to {max_boots} and one more"
        );
        (min_boots, max_boots) = (boots, boots);
        guest.expect_prompt()?;
        let found = guest.console().output_of("history")?;
        history
            .check(&found)
            .with_context(|| format!("kill {kill}"))?;
        if kill == KILLS {
            let store = guest.console().output_of("store")?.concat();
            let rewritten = !store.contains("generation=1 ") && !store.contains("generation=2 ");
            let ran = history.kept.len();
            ensure!(
                rewritten && ran > KILLS as usize,
                "too little done: {ran} lines, {store}"
            );
            break;
        }

        // Long enough that the area is full now and then.
        let lines: Vec<_> = (0..40)
            .map(|number| {
                format!(
                    "echo {kill}-{number} {}",
                    "x".repeat(random.usize(100..250))
                )
            })
            .collect();
        for line in &lines {
            guest.type_line(line)?;
        }
        std::thread::sleep(Duration::from_millis(random.u64(..250)));
        guest.process().kill()?;
        let bytes = std::fs::read(&file)?;
        let ran = |line: &&String| {
            let output = line.strip_prefix("echo ").unwrap_or_default();
            let printed = guest.console().lines();
            printed.iter().any(|printed| printed.text == output)
        };
        let ran: Vec<_> = lines.iter().take_while(ran).collect();
        if let Some(last) = ran.last() {
            let there = bytes
                .windows(last.len())
                .any(|window| window == last.as_bytes());
            ensure!(there, "kill {kill}: {last:?} ran and is not in the file");
        }
        history.typed(lines.clone(), ran.len());
    }
    Ok(())
}

/// What must be in the guest's history.
#[derive(Default)]
struct History {
    kept: Vec<String>,
    /// Typed last: how many of them ran, at least.
    typed: Vec<String>,
    ran: usize,
}

impl History {
    fn typed(&mut self, lines: Vec<String>, ran: usize) {
        (self.typed, self.ran) = (lines, ran);
    }

    /// Compares it with what the guest says, which decides how many of the lines were kept whose commands were not seen to
    /// run.
    fn check(&mut self, found: &[String]) -> Result<()> {
        let found: Vec<_> = found.iter().map(|line| line.trim()).collect();
        let last = found.last().copied().unwrap_or_default();
        let kept = self
            .typed
            .iter()
            .position(|line| line == last)
            .map_or(0, |at| at + 1);
        ensure!(
            kept >= self.ran,
            "{kept} lines kept and {} had run",
            self.ran
        );
        self.kept.extend(self.typed.drain(..).take(kept));
        self.ran = 0;
        ensure!(
            found.len() >= self.kept.len().min(SURE_LINES) && found.len() <= self.kept.len(),
            "{} lines of {}",
            found.len(),
            self.kept.len()
        );
        let expected = &self.kept[self.kept.len() - found.len()..];
        ensure!(found == expected, "other lines than were typed: {found:?}");
        Ok(())
    }
}
