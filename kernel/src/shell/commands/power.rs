//! Commands that end the guest: poweroff, reboot, panic.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hint::black_box;

use crate::devices::{net, sound};
use crate::platform::arch::provoke;
use crate::platform::power;
use crate::platform::serial;
use crate::runtime::task::Shutdown;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[
    Command {
        name: "poweroff",
        usage: &["poweroff [status=N]"],
        help: "switches the machine off; with a status, QEMU exits with 2 * status + 1",
        run: |args, out| Box::pin(poweroff(args, out)),
    },
    Command {
        name: "reboot",
        usage: &["reboot"],
        help: "restarts the machine",
        run: |args, out| Box::pin(reboot(args, out)),
    },
    Command {
        name: "panic",
        usage: &["panic [overflow|fault|stack|divide|alloc]"],
        help: "crashes the kernel, to see the report",
        run: |args, out| Box::pin(panic(args, out)),
    },
];

/// Finishes what must not be cut off. If the machine stays on after all, it works again when the [`Shutdown`] is dropped.
pub(in crate::shell) async fn prepare_shutdown() -> Shutdown {
    let shutdown = Shutdown::begin();
    sound::silence();
    if !shutdown.finished().await {
        log::warn!("what was being written could not be finished");
    }
    net::sent().await;
    serial::sent().await;
    shutdown
}

async fn poweroff(mut args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    let status = args.number_option("status")?;
    let status = args.or_next("STATUS", status)?.unwrap_or(0);
    args.end()?;
    let _shutdown = prepare_shutdown().await;
    if status != 0 {
        let status = u32::try_from(status).map_err(|_| Error::usage("status is too large"))?;
        power::exit_with(status);
        return Err(Error::failed("the machine has no isa-debug-exit"));
    }
    Err(Error::failed(power::off()))
}

async fn reboot(args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    args.end()?;
    let _shutdown = prepare_shutdown().await;
    power::reboot()
}

async fn panic(mut args: Args<'_>, _: Output<'_>) -> Result<(), Error> {
    let kind = args.next_word();
    args.end()?;
    match kind {
        None => panic!("asked for by the panic command"),
        Some("overflow") => provoke::stack_overflow(),
        Some("fault") => provoke::page_fault(),
        Some("stack") => provoke::exception_without_stack(),
        Some("divide") => provoke::divide_error(),
        Some("alloc") => {
            let hoard: Vec<u8> = Vec::with_capacity(black_box(1 << 46));
            black_box(hoard);
        }
        Some(other) => {
            return Err(Error::usage(format_args!(
                "no kind of crash is called {other}"
            )));
        }
    }
    Err(Error::failed("the kernel did not crash"))
}
