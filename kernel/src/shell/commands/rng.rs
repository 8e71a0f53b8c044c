//! Commands of the entropy device: rng.

use alloc::boxed::Box;
use alloc::vec;

use crate::devices::rng::{self, Rng};
use crate::shell::{Args, Command, Error, Output, dump};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "rng",
    usage: &["rng [bytes=N]"],
    help: "shows random bytes from the entropy device",
    run: |args, out| Box::pin(show(args, out)),
}];

const BYTES: u64 = 32;
const MAX_BYTES: u64 = 4096;

/// One byte: the host may ration them.
pub(super) async fn check(rng: &Rng, out: Output<'_>) -> Result<(), Error> {
    fill(rng, &mut [0]).await?;
    writeln!(out, "{}: gives random bytes", rng.name())?;
    Ok(())
}

async fn fill(rng: &Rng, bytes: &mut [u8]) -> Result<(), Error> {
    let filled = rng.fill(bytes).await;
    filled.map_err(|error| Error::failed(format_args!("{}: {error}", rng.name())))
}

async fn show(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let count = args.number_option("bytes")?;
    let count = args.or_next("BYTES", count)?.unwrap_or(BYTES);
    args.end()?;
    if !(1..=MAX_BYTES).contains(&count) {
        return Err(Error::usage(format_args!("bytes is 1 to {MAX_BYTES}")));
    }
    let rng = rng::first().ok_or_else(|| Error::failed("no entropy device"))?;
    let mut bytes = vec![0; count as usize];
    fill(rng, &mut bytes).await?;
    dump::lines(out, 0, &bytes).await
}
