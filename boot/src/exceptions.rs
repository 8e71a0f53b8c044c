//! A CPU exception in the loader is a bug, or broken hardware: it is reported, too.

use core::mem::size_of_val;

use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::{Entry, HandlerFunc};

use crate::fail;

/// Exceptions that the CPU knows. Interrupts stay off.
const VECTORS: usize = 32;
/// Bytes from one stub in `entry.s` to the next.
const STUB_SIZE: u64 = 16;

static mut TABLE: [Entry<HandlerFunc>; VECTORS] = [Entry::missing(); VECTORS];

unsafe extern "C" {
    static exception_stubs: u8;
}

/// Makes every exception end in [`exception`].
pub(crate) fn install() {
    let table = &raw mut TABLE;
    // SAFETY: this runs once, at the start, so nothing else refers to the table; it is static, so it
    // stays; and each stub takes what the CPU pushes for its vector.
    unsafe {
        for (vector, entry) in (0..).zip((*table).iter_mut()) {
            let stub = (&raw const exception_stubs) as u64 + STUB_SIZE * vector;
            entry.set_handler_addr(VirtAddr::new_truncate(stub));
        }
        lidt(&DescriptorTablePointer {
            limit: (size_of_val(&*table) - 1) as u16,
            base: VirtAddr::from_ptr(table),
        });
    }
}

/// Where the stubs in `entry.s` go.
#[unsafe(no_mangle)]
extern "sysv64" fn exception(vector: u64, error_code: u64, rip: u64, cr2: u64) -> ! {
    fail::stop(format_args!(
        "exception {vector} in the loader at {rip:#x}, error code {error_code:#x}, cr2 {cr2:#x}"
    ))
}
