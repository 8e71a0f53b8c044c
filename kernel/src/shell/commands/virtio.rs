//! Commands that show the virtio devices: virtio.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use vringlet::QueueReport;

use crate::devices::{self, Device};
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "virtio",
    usage: &["virtio [NAME]"],
    help: "shows the virtio devices: features, queues, counters",
    run: |args, out| Box::pin(virtio(args, out)),
}];

async fn virtio(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let name = args.next_word();
    args.end()?;
    let devices = match name {
        None => devices::all(),
        Some(name) => {
            let device = devices::find(name);
            Vec::from([device.ok_or_else(|| Error::failed(format!("no device {name}")))?])
        }
    };
    devices.into_iter().try_for_each(|device| show(device, out))
}

fn show(device: &Device, out: Output<'_>) -> Result<(), Error> {
    let (name, place, mode) = (&device.name, device.place, device.mode());
    let driver = match &device.driver {
        Ok(driver) => driver,
        Err(reason) => {
            writeln!(out, "{name}: {place}: {reason}")?;
            return Ok(());
        }
    };
    let report = driver.report();
    writeln!(out, "{name}: {place} ({mode}): {}", driver.summary())?;
    writeln!(out, "  offered:  {}", report.offered())?;
    writeln!(out, "  accepted: {}", report.accepted())?;
    for queue in &report.queues {
        show_queue(queue, out)?;
    }
    write!(out, "  config_changes={}", report.config_changes)?;
    for (name, count) in &report.counters {
        write!(out, " {name}={count}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn show_queue(queue: &QueueReport, out: Output<'_>) -> Result<(), Error> {
    let (name, index, stats) = (queue.name, queue.index, queue.stats);
    writeln!(
        out,
        "  queue {index} ({name}): size={} in_flight={} submitted={} completed={} violations={}",
        queue.size, queue.in_flight, stats.submitted, stats.completed, stats.violations
    )?;
    if let Some(claim) = stats.first_violation {
        writeln!(out, "    the first violation: {claim}")?;
    }
    writeln!(
        out,
        "    kicks={} kicks_saved={} interrupts={}; per request: kicks={} interrupts={}",
        stats.kicks,
        stats.kicks_saved,
        stats.interrupts,
        Ratio(stats.kicks, stats.submitted),
        Ratio(stats.interrupts, stats.completed)
    )?;
    Ok(())
}

/// A quotient with three decimals.
struct Ratio(u64, u64);

impl core::fmt::Display for Ratio {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self(part, whole) = *self;
        match u128::from(part) * 1000 / u128::from(whole.max(1)) {
            _ if whole == 0 => f.write_str("-"),
            mille => write!(f, "{}.{:03}", mille / 1000, mille % 1000),
        }
    }
}
