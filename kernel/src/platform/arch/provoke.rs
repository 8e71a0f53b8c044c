//! Exceptions on purpose, so that their reports can be seen and tested.

#![allow(unsafe_code)]

use core::hint::black_box;

/// Runs off the end of the stack.
pub fn stack_overflow() {
    black_box(descend(1));
}

#[inline(never)]
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX {
        0
    } else {
        descend(depth + 1) + frame[0]
    }
}

/// Writes where nothing is mapped.
pub fn page_fault() {
    let nowhere = black_box(0xdead_0000 as *mut u8);
    // SAFETY: the fault is the purpose, and the kernel ends with it.
    unsafe { nowhere.write_volatile(1) };
}

/// Where [`exception_without_stack`] puts the stack: a canonical address in nobody's mapping.
const NO_STACK: u64 = 0x1234_5678_9000;

/// Raises an exception that the processor has no stack for. Naked, so that nothing moves the stack pointer between the two
/// instructions, and the report must show it to the byte.
#[unsafe(naked)]
pub extern "sysv64" fn exception_without_stack() -> ! {
    // The breakpoint's handler has no stack of its own: what the processor pushes for it goes nowhere, and that fault has.
    core::arch::naked_asm!("mov rsp, {no_stack}", "int3", no_stack = const NO_STACK)
}

/// Divides by zero.
pub fn divide_error() {
    // SAFETY: the exception is the purpose, and the kernel ends with it.
    unsafe { core::arch::asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) };
}
