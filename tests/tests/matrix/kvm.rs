//! The guest on KVM: what differs there is who keeps the time, who delivers interrupts, and what the processor has.
//!
//! Other cells run on TCG unless they are told otherwise; these run on KVM, and are passed over where there is none that
//! runs guests. A host that emulates a guest's kernel, as one in a virtual machine may, takes seconds for each: whatever they
//! do is small.

use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use vringlet_tests::accelerator::{self, Accelerator, Kind};
use vringlet_tests::cell::{self, Booted, Cell, MEMORY};
use vringlet_tests::disk::Disk;
use vringlet_tests::guest::{End, Process};
use vringlet_tests::net::FORWARDS;
use vringlet_tests::net::clients::judge_services;
use vringlet_tests::qemu::{Image, Qemu};
use vringlet_tests::setting;

use super::boot::word_before;
use super::pmem::pattern_bytes;
use crate::Spec;

/// What a boot and a script may take where the guest's kernel is emulated, on a machine with other things to do: it bounds a
/// hang and judges no speed.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);
const DISK_SECTORS: u64 = 128;
const MEMORY_BYTES: usize = 1 << 20;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    let mut add = |name: &str, body: fn(&Cell, &str) -> Result<()>, variant: &'static str| {
        cells.push(Spec::new(name, move |cell| body(cell, variant)).unless(unavailable));
    };
    add("q35/kvm/boot", boot, "q35");
    add("pc/kvm/boot", boot, "pc");
    add("microvm/kvm/boot", boot, "microvm");
    add("microvm,pcie=on/kvm/boot", boot, "microvm,pcie=on");
    add("q35/kvm/timer=deadline", timer, "");
    add("q35/kvm/timer=one-shot", timer, "-tsc-deadline");
    add("q35/kvm/tsc=measured", measured, "q35");
    add(
        "microvm,pit=off/kvm/tsc=measured",
        measured,
        "microvm,pit=off",
    );
    add("q35/kvm/x2apic=on", local_apic, "");
    add("q35/kvm/x2apic=off", local_apic, "-x2apic");
    add("q35/kvm/irqchip=on", controllers, IRQCHIP_ON);
    add("q35/kvm/irqchip=split", controllers, IRQCHIP_SPLIT);
    add("q35/kvm/msix-by-irqfd", irqfd, "q35");
    add("q35/kvm/intx", intx, "q35");
    add("pc/kvm/intx", intx, "pc");
    add("q35/kvm/net", net, "q35");
    add("q35/kvm/pmem", pmem, "q35");
    add("q35/kvm/smp=4", processors, "4");
    // Not every host can have these two.
    cells.push(
        Spec::new("q35/kvm/irqchip=off", |cell| controllers(cell, IRQCHIP_OFF))
            .unless(|| refused(|kvm| kvm.with_options(IRQCHIP_OFF))),
    );
    cells.push(
        Spec::new("q35/kvm/tsc=stated", stated).unless(|| refused(|kvm| kvm.with_cpu(INVARIANT))),
    );
    cells
}

/// Who has the interrupt controllers: KVM all of them, KVM the local APICs alone, QEMU.
const IRQCHIP_ON: &str = "kernel-irqchip=on";
const IRQCHIP_SPLIT: &str = "kernel-irqchip=split";
const IRQCHIP_OFF: &str = "kernel-irqchip=off";
/// QEMU states the rate of a counter that always has the same, and goes no further without one.
const INVARIANT: &str = "+invtsc,enforce";

/// What these cells run on.
pub(super) fn on_kvm() -> Result<&'static Accelerator> {
    static FOUND: OnceLock<Result<Accelerator, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let find = || -> Result<Result<Accelerator, String>> {
            match setting("ACCEL").as_deref() {
                None | Some("auto") => Ok(accelerator::kvm(&"q35".parse()?, &cell::guest()?)),
                Some(accel) => {
                    let chosen = &cell::accelerator()?.accelerator;
                    let is_kvm = chosen.kind() == Kind::Kvm;
                    Ok(is_kvm
                        .then(|| chosen.clone())
                        .ok_or(format!("ACCEL={accel}")))
                }
            }
        };
        find().unwrap_or_else(|error| Err(format!("{error:#}")))
    });
    found.as_ref().map_err(|reason| anyhow!("{reason}"))
}

pub(super) fn unavailable() -> Option<String> {
    on_kvm().err().map(|reason| reason.to_string())
}

/// What there is against a variant of it on this host: QEMU says that before the guest runs.
fn refused(variant: fn(&Accelerator) -> Accelerator) -> Option<String> {
    let start = || {
        let mut qemu = Qemu::new(&"q35".parse()?, &cell::guest()?)?;
        variant(on_kvm()?).plug(&mut qemu);
        Process::start(&qemu, Stdio::null(), Stdio::null(), Stdio::piped())
    };
    start().err().map(|error| format!("{error:#}"))
}

/// A guest on KVM, as this machine's processor is.
fn guest(cell: &Cell, machine: &str) -> Result<Qemu> {
    cell.qemu_on(on_kvm()?, &machine.parse()?, MEMORY)
}

/// The same with more properties of the processor.
fn guest_with(cell: &Cell, properties: &str) -> Result<Qemu> {
    let accelerator = match properties {
        "" => on_kvm()?.clone(),
        more => on_kvm()?.with_cpu(more),
    };
    cell.qemu_on(&accelerator, &"q35".parse()?, MEMORY)
}

/// Adds a disk, and commands that read all of it and write some.
fn add_disk(cell: &Cell, qemu: &mut Qemu, properties: &str) -> Result<(Disk, String)> {
    let mut disk = Disk::create(cell.file("disk.img"), DISK_SECTORS, 3)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "dev0", &format!("drive=d0{properties}"));
    disk.expect_pattern(9..29, 4);
    let script =
        format!("blk verify blk0 0 {DISK_SECTORS} 3 depth=4; blk fill blk0 9 20 4; blk flush blk0");
    Ok((disk, script))
}

/// So long that a processor that is emulated, too, has nothing to do in the end and waits for the timer.
const IDLE: &str = "sleep 2000";

/// Runs the script to its end, at the prompt; QEMU says that the guest is on KVM.
fn boot_on_kvm(cell: &Cell, mut qemu: Qemu, script: &str) -> Result<Booted> {
    qemu.script(&format!("strict; {script}"));
    let mut guest = cell.boot(qemu)?;
    guest.console().wait_for_prompt(BOOT_PATIENCE)?;
    let kvm = guest.process().qmp.execute("query-kvm", json!({}))?;
    ensure!(kvm["enabled"] == true, "not on KVM: {kvm}");
    Ok(guest)
}

/// How often the interrupt whose name begins like this arrived, by what `irq` in the script says.
fn interrupts(guest: &Booted, name: &str) -> Result<u64> {
    let said = guest.console().output_of("irq")?;
    let counts = said.iter().filter_map(|line| {
        let mut words = line.split_whitespace();
        let count = words.nth(1)?.parse::<u64>().ok()?;
        let named = words.collect::<Vec<_>>().join(" ");
        named.contains(name).then_some(count)
    });
    counts
        .reduce(|all, count| all + count)
        .with_context(|| format!("no interrupt of {name}: {said:?}"))
}

/// At least once: a disk that is done at once needs an interrupt for few requests. More come than a device sent on a host
/// that ends interrupts of lines by itself before the guest does: they are served twice.
fn ensure_interrupted(guest: &Booted, name: &str) -> Result<()> {
    let count = interrupts(guest, name)?;
    ensure!(count > 0, "{name} never interrupted");
    Ok(())
}

/// From the firmware to the power-off, with a disk.
fn boot(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = guest(cell, machine)?;
    let (disk, script) = add_disk(cell, &mut qemu, "")?;
    let guest = boot_on_kvm(cell, qemu, &format!("{script}; irq"))?;
    ensure_interrupted(&guest, "blk0")?;
    guest.power_off()?;
    disk.check()
}

/// A sleep ends by the timer that the processor has, and not before its time. KVM shows how the timer is set.
fn timer(cell: &Cell, processor: &str) -> Result<()> {
    let mode = match processor {
        "" => "tsc-deadline",
        _ => "one-shot",
    };
    let qemu = guest_with(cell, processor)?;
    let mut guest = boot_on_kvm(cell, qemu, &format!("{IDLE}; irq"))?;
    ensure_interrupted(&guest, "timer")?;
    let lapic = guest.process().qmp.monitor("info lapic")?;
    let timer = lapic.lines().find(|line| line.starts_with("LVTT\t"));
    let timer = timer.with_context(|| format!("no timer in {lapic}"))?;
    ensure!(timer.contains(mode), "the timer is not {mode}: {timer}");
    sleeps_long_enough(&mut guest)?;
    guest.power_off()
}

/// By this machine's clock.
fn sleeps_long_enough(guest: &mut Booted) -> Result<()> {
    const SLEEP: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    guest.type_line(&format!("sleep {}\recho woken", SLEEP.as_millis()))?;
    guest.expect("> echo woken")?;
    guest.expect("woken")?;
    let slept = begun.elapsed();
    // The guest's rate of the counter may be measured, and so may be off by a little.
    ensure!(slept > SLEEP.mul_f64(0.95), "woken after {slept:?}");
    Ok(())
}

/// The rate of the time-stamp counter in the guest's log, and as QEMU has it, in Hz.
fn rates(guest: &mut Booted) -> Result<(String, f64, f64)> {
    let line = guest.console().find("time: TSC ").context("no TSC")?.text;
    let megahertz = line
        .split("TSC ")
        .nth(1)
        .and_then(|text| text.split(' ').next());
    let megahertz: f64 = megahertz.unwrap_or_default().parse()?;
    let qmp = &mut guest.process().qmp;
    let processors = qmp.execute("query-cpus-fast", json!({}))?;
    let property = json!({ "path": processors[0]["qom-path"], "property": "tsc-frequency" });
    let real = qmp.execute("qom-get", property)?;
    let real = real.as_f64().context("QEMU has no rate")?;
    ensure!(real > 0.0, "QEMU does not know the rate");
    Ok((line, megahertz * 1e6, real))
}

/// By KVM's leaf of CPUID, to the kilohertz.
fn stated(cell: &Cell) -> Result<()> {
    let qemu = guest_with(cell, INVARIANT)?;
    let mut guest = boot_on_kvm(cell, qemu, "sleep 10")?;
    let (line, seen, real) = rates(&mut guest)?;
    ensure!(line.contains("(stated by CPUID, invariant)"), "{line}");
    ensure!((seen - real).abs() < 1e3, "{line}, and really {real} Hz");
    sleeps_long_enough(&mut guest)?;
    guest.power_off()
}

/// By a clock of the machine's, or by the local APIC's timer where there is none.
fn measured(cell: &Cell, machine: &str) -> Result<()> {
    let qemu = guest(cell, machine)?;
    let mut guest = boot_on_kvm(cell, qemu, "sleep 10")?;
    let (line, seen, real) = rates(&mut guest)?;
    // A rate that was guessed is off by far more, one that was measured by far less.
    ensure!(
        (seen / real - 1.0).abs() < 0.1,
        "{line}, and really {real} Hz"
    );
    sleeps_long_enough(&mut guest)?;
    guest.power_off()
}

/// Driven by model-specific registers, or by memory: messages, lines and the timer arrive.
fn local_apic(cell: &Cell, processor: &str) -> Result<()> {
    let interface = match processor {
        "" => "local APIC: x2APIC",
        _ => "local APIC: xAPIC",
    };
    let mut qemu = guest_with(cell, processor)?;
    let (disk, script) = add_disk(cell, &mut qemu, "")?;
    let script = format!("{script}; {IDLE}; irq");
    let guest = boot_on_kvm(cell, qemu, &script)?;
    guest.check_said("irq", interface)?;
    ensure_interrupted(&guest, "blk0")?;
    ensure_interrupted(&guest, "timer")?;
    guest.power_off()?;
    disk.check()
}

/// Messages and lines arrive whoever delivers them.
fn controllers(cell: &Cell, options: &str) -> Result<()> {
    let memory = cell.file("pmem.img");
    std::fs::write(&memory, vec![0; MEMORY_BYTES])?;
    let accelerator = on_kvm()?.with_options(options);
    let mut qemu = cell.qemu_on(&accelerator, &"q35".parse()?, "128M,maxmem=2G")?;
    let (disk, script) = add_disk(cell, &mut qemu, "")?;
    qemu.persistent_memory("pmem0", &memory, "")?;
    qemu.cmdline("store=none");
    let script = format!("{script}; pmem fill pmem0 3 2000 5; pmem flush pmem0; {IDLE}; irq");
    let guest = boot_on_kvm(cell, qemu, &script)?;
    guest.eventually("blk0: virtio-blk at 00:01.0 (msix)")?;
    guest.eventually("pmem0: virtio-pmem at 00:02.0 (intx)")?;
    for name in ["blk0", "pmem0", "timer"] {
        ensure_interrupted(&guest, name)?;
    }
    guest.power_off()?;
    check_memory(&memory, 3..2003, 5)?;
    disk.check()
}

/// QEMU hands KVM the event that a message is sent by: its main loop has no part in the interrupt then.
fn irqfd(cell: &Cell, machine: &str) -> Result<()> {
    /// `KVM_IRQFD` of Linux's `kvm.h`.
    const KVM_IRQFD: &str = "kvm_vm_ioctl type 0x4020ae76,";
    const ROUTE: &str = "kvm_irqchip_add_msi_route dev virtio-blk-pci vector ";
    let traced = cell.file("trace.log");
    let mut qemu = guest(cell, machine)?;
    let (disk, script) = add_disk(cell, &mut qemu, "")?;
    for event in ["kvm_vm_ioctl", "kvm_irqchip_add_msi_route"] {
        qemu.arg("-trace", event);
    }
    // It is the file for what the guest does wrong as well.
    qemu.log_guest_errors(&traced)?;
    let guest = boot_on_kvm(cell, qemu, &format!("{script}; irq"))?;
    ensure_interrupted(&guest, "blk0")?;
    guest.power_off()?;
    let log = std::fs::read_to_string(&traced)?;
    let routes = log.lines().filter(|line| line.starts_with(ROUTE)).count();
    ensure!(routes == 2, "messages for {routes} vectors of the disk");
    // From the first of the routes on, as many are connected.
    let after = log.lines().skip_while(|line| !line.starts_with(ROUTE));
    let connected = after.filter(|line| line.starts_with(KVM_IRQFD)).count();
    ensure!(connected >= routes, "{connected} events of {routes}");
    let strange = log.lines().find(|line| !line.starts_with("kvm_"));
    ensure!(strange.is_none(), "QEMU logged {strange:?}");
    disk.check()
}

/// Lines that the firmware of either machine routes, each kind of device on one.
fn intx(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = guest(cell, machine)?;
    let (disk, script) = add_disk(cell, &mut qemu, ",vectors=0")?;
    qemu.user_net("n0", &[]);
    qemu.virtio("net", "net0", "netdev=n0,vectors=0");
    let mut guest = boot_on_kvm(cell, qemu, &format!("{script}; irq"))?;
    guest.eventually("net0: address 10.0.2.15/24")?;
    guest.command("ping 10.0.2.2 2", "2 sent, 2 received")?;
    ensure_interrupted(&guest, "(blk0")?;
    for start in ["blk0: virtio-blk at ", "net0: virtio-net at "] {
        let line = guest.console().find(start).context(start)?.text;
        ensure!(line.contains("(intx)"), "{line}");
    }
    let polled = guest.console().find("without an interrupt");
    ensure!(polled.is_none(), "{polled:?}");
    guest.power_off()?;
    disk.check()
}

/// A page and echoes, judged by clients of this machine.
fn net(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = guest(cell, machine)?;
    qemu.user_net("n0", FORWARDS);
    qemu.virtio("net", "dev0", "netdev=n0,mac=52:54:00:12:34:56");
    let mut guest = boot_on_kvm(cell, qemu, "net")?;
    guest.eventually("net0: address 10.0.2.15/24")?;
    guest.command("ping 10.0.2.2 2", "2 sent, 2 received")?;
    judge_services(&mut guest.process().qmp, 20_000, &[1472])?;
    guest.power_off()
}

/// What is written and flushed is in the file.
fn pmem(cell: &Cell, machine: &str) -> Result<()> {
    let memory = cell.file("pmem.img");
    std::fs::write(&memory, vec![0; MEMORY_BYTES])?;
    let mut qemu = cell.qemu_on(on_kvm()?, &machine.parse()?, "128M,maxmem=2G")?;
    qemu.persistent_memory("pmem0", &memory, "")?;
    qemu.cmdline("store=none");
    let script = "pmem fill pmem0 4001 20000 6; pmem verify pmem0 4001 20000 6; pmem flush pmem0";
    let guest = boot_on_kvm(cell, qemu, script)?;
    guest.power_off()?;
    check_memory(&memory, 4001..24_001, 6)
}

fn check_memory(file: &Path, written: std::ops::Range<u64>, seed: u64) -> Result<()> {
    let mut expected = vec![0; MEMORY_BYTES];
    let range = written.start as usize..written.end as usize;
    expected[range].copy_from_slice(&pattern_bytes(seed, written));
    ensure!(
        std::fs::read(file)? == expected,
        "the memory has other bytes"
    );
    Ok(())
}

/// The guest sees them all, uses one, and the others do not get in its way, up to the end.
fn processors(cell: &Cell, count: &str) -> Result<()> {
    let mut qemu = guest(cell, "q35")?;
    qemu.arg("-smp", count);
    let (disk, script) = add_disk(cell, &mut qemu, "")?;
    let mut guest = boot_on_kvm(cell, qemu, &script)?;
    let banner = guest
        .console()
        .find("vringlet 0.1.0: ")
        .context("no banner")?
        .text;
    let seen: Option<u64> = word_before(&banner, " CPU");
    ensure!(seen == count.parse().ok(), "{count} CPUs: {banner}");
    let processors = guest.process().qmp.execute("query-cpus-fast", json!({}))?;
    let there = processors.as_array().map(Vec::len);
    ensure!(there == count.parse().ok(), "QEMU has {there:?}");
    guest.type_line("poweroff")?;
    guest.ends_with(&End::PowerOff)?;
    disk.check()
}
