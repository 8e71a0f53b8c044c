//! A bare guest that does with each device what a kernel does with it, once, waiting for it, and nothing else: its code is
//! that of the drivers, and of what every kernel has (`platform.rs`). Built with no feature, it is only the latter.
//!
//! `scripts/size.sh` builds and measures it. It is never started.

#![no_std]
#![no_main]

extern crate alloc;

mod ours;
mod platform;
mod stock;

use core::fmt::Display;
use core::hint::black_box;

use virtio_drivers::transport::pci::bus::DeviceFunction;

/// Where a linker has a program start.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    platform::start();

    #[cfg(feature = "blk")]
    report(ours::blk(place()));
    #[cfg(feature = "gpu")]
    report(ours::gpu(place()));
    #[cfg(feature = "net")]
    report(ours::net(place()));
    #[cfg(feature = "pmem")]
    report(ours::pmem(place()));
    #[cfg(feature = "rng")]
    report(ours::rng(place()));
    #[cfg(feature = "sound")]
    report(ours::sound(place()));

    #[cfg(feature = "stock-blk")]
    report(stock::blk(place()));
    #[cfg(feature = "stock-gpu")]
    report(stock::gpu(place()));
    #[cfg(feature = "stock-net")]
    report(stock::net(place()));
    #[cfg(feature = "stock-rng")]
    report(stock::rng(place()));
    #[cfg(feature = "stock-sound")]
    report(stock::sound(place()));

    platform::stop()
}

/// Where a device is, which the compiler is not to know.
fn place() -> DeviceFunction {
    black_box(DeviceFunction {
        bus: 0,
        device: 1,
        function: 0,
    })
}

/// A kernel says what went wrong.
#[allow(dead_code, reason = "without a driver there is nothing to report")]
fn report<T, E: Display>(result: Result<T, E>) {
    if let Err(error) = result {
        log::error!("{error}");
    }
}
