//! What the guest boots on: memory sizes, processors, buses, many devices and none, and what it says when it can't.

use anyhow::{Context, Result, ensure};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vringlet_tests::accelerator::Accelerator;
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::console::Console;
use vringlet_tests::disk::{Disk, MIB};
use vringlet_tests::gdb::{Debugger, Register};
use vringlet_tests::guest::End;
use vringlet_tests::qemu::{Image, Machine, Qemu, escape, utf8};

use crate::Spec;

const MACHINES: [&str; 4] = ["q35", "pc", "microvm", "microvm,pcie=on"];

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    cells.push(Spec::new("q35/boot/typed-ahead", typed_ahead));
    cells.push(Spec::new("q35/boot/long-sleep", long_sleep));
    for machine in MACHINES {
        cells.push(Spec::new(
            format!("{machine}/boot/no-device"),
            move |cell| no_device(cell, machine),
        ));
        for (name, mib) in [("16M", 16), ("64M", 64), ("8G", 8192)] {
            cells.push(Spec::new(
                format!("{machine}/boot/memory={name}"),
                move |cell| memory(cell, machine, mib),
            ));
        }
        for cpu in ["qemu64", "max"] {
            cells.push(Spec::new(
                format!("{machine}/boot/cpu={cpu}"),
                move |cell| processors(cell, emulated(cell, machine, cpu)?, 1),
            ));
        }
        cells.push(Spec::new(format!("{machine}/boot/smp=4"), move |cell| {
            let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
            qemu.arg("-smp", "4");
            processors(cell, qemu, 4)
        }));
        // Too little for the loader, and for the kernel.
        for memory in ["2M", "8M"] {
            cells.push(Spec::new(
                format!("{machine}/boot/too-little-memory={memory}"),
                move |cell| refused(cell, cell.qemu(&machine.parse()?, memory)?, "memory"),
            ));
        }
        cells.push(Spec::new(
            format!("{machine}/boot/no-long-mode"),
            move |cell| refused(cell, emulated(cell, machine, "qemu32")?, "long mode"),
        ));
    }
    for machine in ["q35", "pc", "microvm"] {
        cells.push(Spec::new(
            format!("{machine}/boot/8-disks-4-nets"),
            move |cell| many_devices(cell, machine),
        ));
    }
    cells.push(Spec::new("microvm/boot/legacy-only", legacy_only));
    cells.push(Spec::new("q35/boot/root-port", |cell| {
        behind_bridges(cell, "q35")
    }));
    cells.push(Spec::new("pc/boot/pci-bridge", |cell| {
        behind_bridges(cell, "pc")
    }));
    for machine in ["q35", "pc", "microvm,pcie=on"] {
        let name = format!("{machine}/boot/host-bridges");
        cells.push(Spec::new(name, move |cell| host_bridges(cell, machine)));
    }
    for machine in ["q35", "pc", "microvm,rtc=on"] {
        cells.push(Spec::new(format!("{machine}/boot/clock"), move |cell| {
            clock(cell, machine)
        }));
    }
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(format!("{machine}/boot/panic"), move |cell| {
            panic(cell, machine)
        }));
        cells.push(Spec::new(
            format!("{machine}/boot/exception"),
            move |cell| exception(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/boot/exception-without-stack"),
            move |cell| exception_without_stack(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/boot/failed-script"),
            move |cell| failed_script(cell, machine),
        ));
        cells.push(Spec::new(
            format!("{machine}/boot/exit-status"),
            move |cell| exit_status(cell, machine),
        ));
        cells.push(Spec::new(format!("{machine}/boot/reboot"), move |cell| {
            reboot(cell, machine)
        }));
        cells.push(Spec::new(format!("{machine}/boot/idle"), move |cell| {
            idle(cell, machine)
        }));
    }
    cells
}

fn no_device(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    let list = "virtio";
    qemu.script(&format!("strict; mem; {list}; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let found: Vec<_> = guest
        .console()
        .lines()
        .into_iter()
        .filter(|line| line.text.contains(": virtio-"))
        .collect();
    ensure!(found.is_empty(), "devices out of nowhere: {found:?}");
    Ok(())
}

/// A device that has the legacy interface alone, as QEMU's slots do unless told otherwise, is named and left alone; the
/// slots without one are passed over.
fn legacy_only(cell: &Cell) -> Result<()> {
    let mut qemu = cell.qemu(&"microvm".parse()?, MEMORY)?;
    // The last one counts.
    qemu.arg("-global", "virtio-mmio.force-legacy=true");
    // Not a disk: the firmware drives those, and writes a register that QEMU says it must not.
    qemu.virtio("rng", "dev0", "");
    qemu.script("strict; virtio; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let lines = guest.console().lines();
    let found: Vec<_> = lines
        .iter()
        .map(|line| line.text.as_str())
        .filter(|text| text.contains(" at mmio "))
        .collect();
    // In the log, and in what the command lists.
    ensure!(
        matches!(found[..], [_, _])
            && found
                .iter()
                .all(|text| text.contains("rng0: virtio-rng at mmio 0xfeb0")
                    && text.ends_with(": offers the legacy interface only")),
        "not one device, refused by name: {found:?}"
    );
    Ok(())
}

/// The guest must see the memory it was given, but for what firmware and machine keep for themselves.
fn memory(cell: &Cell, machine: &str, mib: u64) -> Result<()> {
    const KEPT: u64 = 4;
    let mut disk = Disk::create(cell.file("disk.img"), MIB, 3)?;
    let mut qemu = cell.qemu(&machine.parse()?, &format!("{mib}M"))?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    qemu.script("strict; mem; blk fill blk0 0 2048 4 depth=32 max=128k; blk flush blk0; poweroff");
    disk.expect_pattern(0..2048, 4);
    let mut guest = cell.boot(qemu)?;
    let banner = guest.expect("vringlet 0.1.0: ")?.text;
    let seen: u64 =
        word_before(&banner, " MiB").with_context(|| format!("no memory size in {banner:?}"))?;
    ensure!(
        (mib - KEPT..=mib).contains(&seen),
        "{seen} MiB seen of {mib}: {banner:?}"
    );
    guest.ends_with(&End::PowerOff)?;
    disk.check()
}

/// A guest on a processor by name, which no host has but by emulation.
fn emulated(cell: &Cell, machine: &str, cpu: &str) -> Result<Qemu> {
    cell.qemu_on(&Accelerator::tcg(cpu), &machine.parse()?, MEMORY)
}

fn processors(cell: &Cell, mut qemu: Qemu, count: u64) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), MIB, 3)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    qemu.script("strict; blk verify blk0 0 2048 3; blk fill blk0 8 100 4; poweroff");
    disk.expect_pattern(8..108, 4);
    let mut guest = cell.boot(qemu)?;
    let banner = guest.expect("vringlet 0.1.0: ")?.text;
    let seen: u64 =
        word_before(&banner, " CPU").with_context(|| format!("no CPU count in {banner:?}"))?;
    ensure!(seen == count, "{seen} CPUs seen of {count}: {banner:?}");
    guest.ends_with(&End::PowerOff)?;
    disk.check()
}

/// The number right before `unit`.
pub(super) fn word_before(text: &str, unit: &str) -> Option<u64> {
    text.split(unit).next()?.rsplit(' ').next()?.parse().ok()
}

/// A machine that can't run the kernel gets one line that says why, and an end.
fn refused(cell: &Cell, mut qemu: Qemu, reason: &str) -> Result<()> {
    // Should it boot after all.
    qemu.script("poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::BOOT_FAILED)?;
    let lines: Vec<_> = guest
        .console()
        .lines()
        .into_iter()
        .map(|line| line.text)
        .filter(|it| !it.is_empty())
        .collect();
    ensure!(
        lines.len() == 1 && lines[0].contains(reason),
        "one line about {reason} is due, not {lines:?}"
    );
    Ok(())
}

/// Eight disks, each with bytes of its own, and four networks, each with addresses of its own.
fn many_devices(cell: &Cell, machine: &str) -> Result<()> {
    let machine: Machine = machine.parse()?;
    let mut qemu = cell.qemu(&machine, MEMORY)?;
    let mut disks = Vec::new();
    let mut script = "strict".to_string();
    for index in 0..8 {
        let mut disk = Disk::create(cell.file(&format!("disk{index}.img")), MIB, 100 + index)?;
        qemu.drive(&format!("d{index}"), disk.path(), Image::RAW)?;
        qemu.virtio(
            "blk",
            &format!("dev{index}"),
            &format!("drive=d{index},serial=disk-{index}"),
        );
        script += &format!(
            "; blk id blk{index}; blk verify blk{index} 0 2048 {}",
            100 + index
        );
        script += &format!(
            "; blk fill blk{index} {} 64 {} depth=4",
            10 + index,
            200 + index
        );
        disk.expect_pattern(10 + index..74 + index, 200 + index);
        disks.push(disk);
    }
    for index in 0..4 {
        qemu.arg(
            "-netdev",
            &format!("user,id=n{index},net=10.0.{}.0/24", 10 + index),
        );
        qemu.virtio(
            "net",
            &format!("net{index}"),
            &format!("netdev=n{index},mac=52:54:00:00:00:{index:02x}"),
        );
    }
    qemu.script(&script);
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    for index in 0..4 {
        guest.eventually(&format!("mac 52:54:00:00:00:{index:02x}"))?;
        guest.eventually(&format!("net{index}: address 10.0.{}.15/24", 10 + index))?;
    }
    for index in 0..4 {
        guest.command(
            &format!("ping 10.0.{}.2 2", 10 + index),
            "2 sent, 2 received",
        )?;
    }
    for index in 0..8 {
        let id = guest.console().output_of(&format!("blk id blk{index}"))?;
        ensure!(
            id.iter()
                .any(|line| line.contains(&format!("id=disk-{index}"))),
            "blk{index} is {id:?}"
        );
    }
    guest.power_off()?;
    disks.iter().try_for_each(Disk::check)
}

/// A disk and a network behind bridges of the machine's own kind, two deep on one side.
fn behind_bridges(cell: &Cell, machine: &str) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), MIB, 5)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    if machine == "q35" {
        qemu.arg("-device", "pcie-root-port,id=outer,chassis=1,slot=1");
        qemu.arg("-device", "pcie-root-port,id=other,chassis=2,slot=2");
        qemu.arg("-device", "x3130-upstream,id=up,bus=outer");
        qemu.arg(
            "-device",
            "xio3130-downstream,id=inner,bus=up,chassis=3,slot=3",
        );
    } else {
        qemu.arg("-device", "pci-bridge,id=other,chassis_nr=1");
        qemu.arg("-device", "pci-bridge,id=outer,chassis_nr=2");
        qemu.arg(
            "-device",
            "pci-bridge,id=inner,chassis_nr=3,bus=outer,addr=1",
        );
    }
    let address = if machine == "q35" { "0" } else { "2" };
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", &format!("drive=d0,bus=inner,addr={address}"));
    qemu.arg("-netdev", "user,id=n0");
    qemu.virtio(
        "net",
        "net0",
        &format!("netdev=n0,bus=other,addr={address}"),
    );
    qemu.script("strict; lspci; blk verify blk0 0 2048 5 depth=8; blk fill blk0 0 64 6");
    disk.expect_pattern(0..64, 6);
    let mut guest = cell.boot(qemu)?;
    guest.eventually("net0: address 10.0.2.15/24")?;
    guest.expect_prompt()?;
    guest.command("ping 10.0.2.2 2", "2 sent, 2 received")?;
    guest.power_off()?;
    disk.check()
}

/// A disk and a network, each behind a host bridge of its own, and a device on bus 0 as ever. On microvm no firmware has given
/// anything a number or an address, and nothing says which buses these are.
fn host_bridges(cell: &Cell, machine: &str) -> Result<()> {
    let mut disk = Disk::create(cell.file("disk.img"), MIB, 5)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    for (index, bus) in [(1, 0x20), (2, 0x80)] {
        if machine == "pc" {
            let bridge = format!("pxb,id=bus{index},bus_nr={bus},bus=pci.0");
            qemu.arg("-device", &bridge);
        } else {
            let bridge = format!("pxb-pcie,id=host{index},bus_nr={bus},bus=pcie.0");
            qemu.arg("-device", &bridge);
            let port =
                format!("pcie-root-port,id=bus{index},bus=host{index},chassis={index},slot=1");
            qemu.arg("-device", &port);
        }
    }
    let address = if machine == "pc" { "2" } else { "0" };
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", &format!("drive=d0,bus=bus2,addr={address}"));
    qemu.arg("-netdev", "user,id=n0");
    qemu.virtio("net", "net0", &format!("netdev=n0,bus=bus1,addr={address}"));
    let first = if machine == "pc" { "pci.0" } else { "pcie.0" };
    qemu.virtio("rng", "rng0", &format!("bus={first}"));
    qemu.script("strict; lspci; blk verify blk0 0 2048 5 depth=8; blk fill blk0 0 64 6; rng 16");
    disk.expect_pattern(0..64, 6);
    let mut guest = cell.boot(qemu)?;
    guest.eventually("blk0: virtio-blk at 81:")?;
    guest.eventually("net0: virtio-net at 21:")?;
    guest.eventually("net0: address 10.0.2.15/24")?;
    guest.expect_prompt()?;
    guest.command("ping 10.0.2.2 2", "2 sent, 2 received")?;
    guest.power_off()?;
    disk.check()
}

/// A clock whose century is not this one.
fn clock(cell: &Cell, machine: &str) -> Result<()> {
    for base in ["1970-01-01", "1999-12-31"] {
        let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
        qemu.arg("-rtc", &format!("base={base}"));
        qemu.script("strict; date; poweroff");
        let mut guest = cell.boot(qemu)?;
        guest.ends_with(&End::PowerOff)?;
        guest.check_said("date", &format!("{base} 00:0"))?;
    }
    Ok(())
}

fn panic(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.script("panic; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PANIC)?;
    ensure!(
        guest.console().find("panicked at ").is_some(),
        "the report does not say where the panic was"
    );
    check_backtrace(guest.console())
}

/// The instruction pointer, spoilt through the debugger: the next instruction faults, wherever the kernel was.
fn exception(cell: &Cell, machine: &str) -> Result<()> {
    let sockets = tempfile::Builder::new().prefix("vringlet-").tempdir()?;
    let path = sockets.path().join("gdb");
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.arg(
        "-chardev",
        &format!(
            "socket,id=gdb,server=on,wait=off,path={}",
            escape(utf8(&path)?)
        ),
    );
    qemu.arg("-gdb", "chardev:gdb");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let mut debugger = Debugger::new(UnixStream::connect(&path).context("the debugger socket")?)?;
    // Canonical, and in no mapping of anyone.
    debugger.set(Register::Rip, 0x1234_5678_9000)?;
    debugger.resume()?;
    // Wakes the processor if it sleeps.
    let _ = guest.press_enter();
    guest.ends_with(&End::EXCEPTION)?;
    reports(&guest, "rip 0x0000123456789000")?;
    check_backtrace(guest.console())
}

/// An exception that finds no stack to be handled on is reported on another, with the stack pointer as it was to the byte.
fn exception_without_stack(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.script("panic stack; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::EXCEPTION)?;
    reports(&guest, "fatal exception 14: page fault")?;
    // `NO_STACK` of the kernel's `provoke.rs`; the first word that is pushed is the one below.
    reports(&guest, "rsp 0x0000123456789000")?;
    reports(&guest, "write at 0x0000123456788ff8")?;
    check_backtrace(guest.console())
}

fn reports(guest: &Booted, text: &str) -> Result<()> {
    let found = guest.console().find(text);
    found
        .map(drop)
        .with_context(|| format!("no {text:?} in the report"))
}

/// A backtrace names the functions: `0xffffffff800221c4 _start+0x13`.
fn check_backtrace(console: &Console) -> Result<()> {
    let lines = console.lines();
    let named = lines
        .iter()
        .skip_while(|line| !line.text.contains("backtrace"))
        .filter(|line| line.text.contains("+0x"));
    let count = named.count();
    ensure!(count >= 2, "the backtrace names {count} functions");
    Ok(())
}

fn failed_script(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.script(
        "no-such-command; echo still here; strict; blk read nowhere 0; echo never; poweroff",
    );
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::SCRIPT_FAILED)?;
    ensure!(
        guest
            .console()
            .output_of("no-such-command")?
            .iter()
            .any(|line| line.starts_with("error: ")),
        "no error line"
    );
    ensure!(
        guest.console().output_of("echo still here")? == ["still here"],
        "the script stopped without `strict`"
    );
    ensure!(
        guest.console().find("> echo never").is_none(),
        "the script went on after a failure"
    );
    Ok(())
}

fn exit_status(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.script("poweroff 42");
    cell.boot(qemu)?.ends_with(&End::DebugExit(42))
}

fn reboot(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.script("reboot");
    cell.boot(qemu)?.ends_with(&End::Reset)
}

/// A guest that waits for input must sleep. One that spins uses all of a core under emulation; one that sleeps and
/// takes a timer tick now and then measures below 2 %. A fifth of a core tells them apart on any machine.
fn idle(cell: &Cell, machine: &str) -> Result<()> {
    const SHARE: f64 = 0.2;
    let span = std::time::Duration::from_secs(5);
    let disk = Disk::create(cell.file("disk.img"), MIB, 1)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", "drive=d0");
    qemu.arg("-netdev", "user,id=n0");
    qemu.virtio("net", "net0", "netdev=n0");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let pid = guest.process().pid();
    let before = cpu_time(pid)?;
    std::thread::sleep(span);
    let share = (cpu_time(pid)? - before) / span.as_secs_f64();
    ensure!(
        share < SHARE,
        "an idle guest uses {:.0} % of a core",
        share * 100.0
    );
    guest.power_off()
}

/// The processor time that a process has used, in seconds.
fn cpu_time(pid: u32) -> Result<f64> {
    // USER_HZ, which the kernel's interface fixes at 100 on x86.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15; the second, in brackets, may hold spaces.
    let fields: Vec<_> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
    };
    ticks(11)
        .zip(ticks(12))
        .map(|(user, system)| (user + system) / TICKS)
        .context("/proc/PID/stat has no times")
}

/// A timer for longer than the hardware's can be set for, which must be set again on the way; then a short one.
fn long_sleep(cell: &Cell) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.script("echo begun; sleep 4000; echo slept; sleep 20; echo slept again");
    let mut guest = cell.boot(qemu)?;
    guest.expect("begun")?;
    let begun = Instant::now();
    guest.expect("slept")?;
    let slept = begun.elapsed();
    // The line before may have taken its time to get here.
    ensure!(slept > Duration::from_millis(3500), "woken after {slept:?}");
    guest.expect("slept again")?;
    guest.power_off()
}

/// Lines that are pasted while a command runs come after it, all of them; Ctrl-C forgets them.
fn typed_ahead(cell: &Cell) -> Result<()> {
    let mut guest = cell.boot(cell.qemu(&"q35".parse()?, MEMORY)?)?;
    let lines: Vec<_> = (0..40)
        .map(|number| format!("echo pasted line {number}"))
        .collect();
    guest.type_line(&format!("sleep 300\r{}", lines.join("\r")))?;
    guest.expect("> echo pasted line 39")?;
    guest.expect("pasted line 39")?;
    for number in 0..40 {
        let line = format!("pasted line {number}");
        let lines = guest.console().lines();
        ensure!(lines.iter().any(|it| it.text == line), "no {line:?}");
    }
    guest.type_line("sleep 60000\recho never")?;
    std::thread::sleep(Duration::from_millis(300));
    guest.interrupt()?;
    guest.command("echo after", "after")?;
    let lines = guest.console().lines();
    ensure!(
        !lines.iter().any(|it| it.text == "never"),
        "Ctrl-C forgot nothing"
    );
    guest.power_off()
}
