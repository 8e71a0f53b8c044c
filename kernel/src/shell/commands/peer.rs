//! The command `peer` (feature `peers`): what `bench blk` does, by others.

use alloc::boxed::Box;
use alloc::format;

use super::bench::places::{Order, Places};
use super::bench::{either, rw};
use crate::devices::peers::{self, Access, Load};
use crate::platform::arch::marker;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "peer",
    usage: &[
        "peer stock [rw=read|write|randread|randwrite] [bs=BYTES] [iodepth=D] [count=N] [fsync=1]",
        "peer ring [bs=BYTES] [iodepth=D] [count=N]",
    ],
    help: "does what `bench blk` does, by the driver of virtio-drivers, or by a ring that is filled once, with the disk that \
           `peer=yes` among the guest's options keeps for it, once",
    run: |args, out| Box::pin(run(args, out)),
}];

async fn run(mut args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    let who = args.word("stock or ring")?;
    let rw = rw(&mut args)?;
    let bytes = either(&mut args, "bs", "size")?.unwrap_or(4096) as usize;
    let depth = either(&mut args, "iodepth", "depth")?.unwrap_or(1) as usize;
    let count = args.number_option("count")?.unwrap_or(10_000);
    let flush = args.number_option("fsync")?.is_some();
    args.end()?;
    let failed = |reason| Error::failed(format!("peer: {reason}"));
    match who {
        "stock" => {
            let (write, order) = rw.unwrap_or((false, Order::Sequential));
            let access = match write {
                true => Access::Write { flush },
                false => Access::Read,
            };
            let load = Load {
                access,
                bytes,
                depth,
                count,
            };
            let mut places = None;
            let next = move |count| {
                places
                    .get_or_insert_with(|| Places::new(order, count, 1))
                    .next()
            };
            let work = peers::run(load, next).map_err(failed)?;
            marker::start();
            let worked = work.await;
            marker::end();
            worked.map_err(failed)
        }
        "ring" => peers::replay(bytes, depth, count, [marker::start, marker::end]).map_err(failed),
        other => Err(Error::usage(format!("`{other}` is neither stock nor ring"))),
    }
}
