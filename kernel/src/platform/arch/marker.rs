//! Marks for plugins of QEMU that count what runs between them. To the processor they are no-operations.

#![allow(unsafe_code)]

use core::arch::asm;

/// What follows is counted.
#[inline(always)]
pub fn start() {
    // `nop dword ptr [rax + rax + 0x52340001]`, which no compiler emits. Memory counts as touched, so that no access is moved
    // to the other side.
    // SAFETY: it does nothing.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x34, 0x52",
            options(nostack, preserves_flags)
        );
    }
}

/// What follows is not counted.
#[inline(always)]
pub fn end() {
    // The same with 0x52340002.
    // SAFETY: as above.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x02, 0x00, 0x34, 0x52",
            options(nostack, preserves_flags)
        );
    }
}
