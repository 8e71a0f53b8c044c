//! Commands of the entropy device: rng.

use alloc::boxed::Box;
use alloc::vec;

use crate::devices::rng;
use crate::shell::{Args, Command, Error, Output, dump};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "rng",
    usage: &["rng [BYTES]"],
    help: "shows random bytes from the entropy device, by virtio-drivers' driver on our transport",
    run: |args, out| Box::pin(show(args, out)),
}];

const BYTES: u64 = 32;
const MOST_BYTES: u64 = 4096;

async fn show(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let count = args.next_number("BYTES")?.unwrap_or(BYTES);
    args.end()?;
    if !(1..=MOST_BYTES).contains(&count) {
        return Err(Error::usage(format_args!("BYTES is 1 to {MOST_BYTES}")));
    }
    let rng = rng::first().ok_or_else(|| Error::failed("no entropy device"))?;
    let mut bytes = vec![0; count as usize];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rng.fill(rest).map_err(Error::Failed)? {
            0 => return Err(Error::failed(format_args!("{} gives nothing", rng.name()))),
            more => filled += more,
        }
    }
    dump::lines(out, 0, &bytes).await
}
