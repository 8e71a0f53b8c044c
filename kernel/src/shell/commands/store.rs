//! Commands that show what is remembered from one boot to the next: history, store.

use alloc::boxed::Box;

use crate::apps::store;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[
    Command {
        name: "history",
        usage: &["history"],
        help: "lists the lines that were typed, those of earlier boots too if there is a store",
        run: |args, out| Box::pin(history(args, out)),
    },
    Command {
        name: "store",
        usage: &["store"],
        help: "shows where lines and the number of boots are kept",
        run: |args, out| Box::pin(status(args, out)),
    },
];

async fn history(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    for line in store::lines().await {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

async fn status(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    let status = store::status().await;
    let status =
        status.ok_or_else(|| Error::failed("there is no store; `pmem format` makes one"))?;
    writeln!(
        out,
        "store: {} boots={} lines={} records={} generation={} room={} size={}",
        status.device,
        status.boots,
        status.lines,
        status.records,
        status.generation,
        status.room,
        status.size
    )?;
    Ok(())
}
