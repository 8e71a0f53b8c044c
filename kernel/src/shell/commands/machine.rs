//! Commands that show the machine and the kernel: mem, irq, date, uptime.

use alloc::boxed::Box;

use chrono::SubsecRound;

use crate::platform::interrupts::{self, lapic};
use crate::platform::memory::{self, PAGE_BYTES};
use crate::platform::{serial, time};
use crate::runtime::task;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[
    Command {
        name: "mem",
        usage: &["mem"],
        help: "shows how much memory is free, and what the rest is used for",
        run: |args, out| Box::pin(mem(args, out)),
    },
    Command {
        name: "irq",
        usage: &["irq"],
        help: "shows each interrupt vector and how often it fired, and how the local APIC is driven",
        run: |args, out| Box::pin(irq(args, out)),
    },
    Command {
        name: "date",
        usage: &["date"],
        help: "shows the time",
        run: |args, out| Box::pin(date(args, out)),
    },
    Command {
        name: "uptime",
        usage: &["uptime"],
        help: "shows how long the kernel runs, and how much of it asleep",
        run: |args, out| Box::pin(uptime(args, out)),
    },
];

async fn mem(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    let kib = |frames: usize| frames * PAGE_BYTES / 1024;
    let (free, all) = memory::frames::usage();
    let (heap_used, heap_size) = memory::heap::usage();
    let (dma_pages, bounces) = memory::dma::usage();
    writeln!(out, "frames: {} KiB free of {} KiB", kib(free), kib(all))?;
    writeln!(
        out,
        "heap: {} KiB used of {} KiB",
        heap_used / 1024,
        heap_size / 1024
    )?;
    writeln!(
        out,
        "dma: {} KiB shared with devices, {bounces} buffers copied",
        kib(dma_pages)
    )?;
    Ok(())
}

async fn irq(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    for (number, name, count) in interrupts::vectors() {
        writeln!(out, "{number:3}  {count:10}  {name}")?;
    }
    writeln!(
        out,
        "local APIC: {}, timer: {}",
        lapic::interface(),
        lapic::timer_kind()
    )?;
    writeln!(
        out,
        "spurious: {}, last APIC error: {:#x}",
        interrupts::spurious(),
        lapic::last_error()
    )?;
    Ok(())
}

async fn date(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    let now = time::wall().ok_or_else(|| Error::failed("this machine has no clock"))?;
    writeln!(out, "{}", now.trunc_subsecs(0))?;
    Ok(())
}

async fn uptime(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    let up = time::now();
    let (slept, sleeps) = task::idle();
    let per_mille = slept.as_nanos() as u64 * 1000 / up.as_nanos().max(1);
    writeln!(
        out,
        "up {}.{:03} s, asleep {}.{} % in {sleeps} sleeps; serial bytes lost: {} in, {} out",
        up.as_micros() / 1_000_000,
        up.as_micros() / 1000 % 1000,
        per_mille / 10,
        per_mille % 10,
        serial::lost_input(),
        serial::lost_output(),
    )?;
    Ok(())
}
