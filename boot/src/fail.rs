//! The end of a boot that can't go on: one line on the serial port, then an exit.

use core::fmt::{Display, Write};
use core::panic::PanicInfo;

use x86_64::instructions::port::Port;
use x86_64::instructions::{hlt, interrupts};

use crate::serial::Serial;

/// QEMU's isa-debug-exit, where it is present.
const DEBUG_EXIT_PORT: u16 = 0xf4;
/// QEMU's exit status is 2 * this + 1.
const DEBUG_EXIT_VALUE: u32 = 0x10;

/// Says why, and stops the machine.
pub(crate) fn stop(why: impl Display) -> ! {
    // Writing to `Serial` can't fail.
    let _ = write!(Serial::new(), "boot: error: {why}\r\n");
    // SAFETY: without the device nothing happens, with it QEMU exits.
    unsafe { Port::new(DEBUG_EXIT_PORT).write(DEBUG_EXIT_VALUE) };
    interrupts::disable();
    loop {
        hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => stop(format_args!(
            "{}, {}:{}",
            info.message(),
            at.file(),
            at.line()
        )),
        None => stop(info.message()),
    }
}
