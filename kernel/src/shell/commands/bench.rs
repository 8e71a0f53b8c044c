//! What the benchmarks of all devices have in common: the command `bench`, the marks around what is measured, and the counters.

pub(super) mod places;

use alloc::boxed::Box;
use alloc::format;
use core::fmt;
use core::future::Future;
use core::time::Duration;

use vringlet::{QueueStats, Report};

use self::places::Order;
use crate::platform::arch::marker;
use crate::platform::time;
use crate::runtime::task;
use crate::shell::{self, Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "bench",
    usage: &[
        "bench blk|gpu|pmem [NAME] [OPTION=VALUE]",
        "bench mark start|end",
    ],
    help: "measures a device: `bench blk blk0 rw=randread` is `blk bench blk0 rw=randread`, and `bench gpu` is `screen \
           bench`; mark executes what a plugin of QEMU counts from, or to",
    run: |args, out| Box::pin(run(args, out)),
}];

async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let command = match args.word("KIND")? {
        "mark" => return mark(args),
        kind => command(kind).ok_or_else(|| Error::usage(format_args!("no benchmark {kind}")))?,
    };
    let ground = args.ground();
    let words = args.text().split_once(char::is_whitespace);
    let words = words.map_or("", |(_, words)| words);
    shell::execute(&format!("{command} bench {words}"), ground, out).await
}

/// The command that has the benchmark of this kind of devices as its operation `bench`.
pub(in crate::shell) fn command(kind: &str) -> Option<&'static str> {
    match kind {
        "blk" => Some("blk"),
        "gpu" => Some("screen"),
        "pmem" => Some("pmem"),
        _ => None,
    }
}

/// For what only somebody outside knows the beginning and the end of, such as what clients do.
fn mark(mut args: Args<'_>) -> Result<(), Error> {
    let mark = match args.word("start or end")? {
        "start" => marker::start,
        "end" => marker::end,
        other => {
            return Err(Error::usage(format_args!(
                "`{other}` is neither start nor end"
            )));
        }
    };
    args.end()?;
    mark();
    Ok(())
}

/// What fio's `rw=` says: whether to write, and in which order.
pub(super) fn rw(args: &mut Args<'_>) -> Result<Option<(bool, Order)>, Error> {
    match args.option("rw") {
        None => Ok(None),
        Some("read") => Ok(Some((false, Order::Sequential))),
        Some("randread") => Ok(Some((false, Order::Random))),
        Some("write") => Ok(Some((true, Order::Sequential))),
        Some("randwrite") => Ok(Some((true, Order::Random))),
        Some(other) => Err(Error::usage(format_args!("rw is not `{other}`"))),
    }
}

/// A number that has fio's name, and one of our own from before.
pub(super) fn either(args: &mut Args<'_>, name: &str, older: &str) -> Result<Option<u64>, Error> {
    match (args.number_option(name)?, args.number_option(older)?) {
        (Some(_), Some(_)) => Err(Error::usage(format_args!("{older} is {name}"))),
        (number, older) => Ok(number.or(older)),
    }
}

/// What something took.
pub(super) struct Took {
    /// Requests that the device completed.
    pub(super) requests: u64,
    time: Duration,
    /// How much of it the processor slept.
    slept: Duration,
    kicks: u64,
    interrupts: u64,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "us={} kicks={} interrupts={} slept_us={}",
            self.time.as_micros(),
            self.kicks,
            self.interrupts,
            self.slept.as_micros()
        )
    }
}

/// Measures `work`, between the marks. `report` is the account of the device that does it.
pub(super) async fn measure<T>(
    report: impl Fn() -> Report,
    work: impl Future<Output = T>,
) -> (T, Took) {
    let before = report();
    let (slept_before, _) = task::idle();
    let start = time::now();
    marker::start();
    let result = work.await;
    marker::end();
    let time = start.elapsed();
    let (slept, _) = task::idle();
    let after = report();
    let sum = |report: &Report, of: fn(&QueueStats) -> u64| -> u64 {
        report.queues.iter().map(|queue| of(&queue.stats)).sum()
    };
    // A device that was started again meanwhile counts from the beginning.
    let difference = |of| sum(&after, of).saturating_sub(sum(&before, of));
    let took = Took {
        requests: difference(|stats| stats.completed),
        time,
        slept: slept.saturating_sub(slept_before),
        kicks: difference(|stats| stats.kicks),
        interrupts: difference(|stats| stats.interrupts),
    };
    (result, took)
}
