//! Order between memory that is shared with a device and the device: by the ring, and by its registers.
//!
//! Rust's fences order memory as other processors see it. A device may be further away than they are, and a register is
//! no memory at all: `fence rw,rw`, which RISC-V's compilers make of a fence, leaves register accesses out, and Arm's
//! `dmb ish` reaches no further than the processors' own (inner) shareability domain. So each architecture has its own
//! instructions here:
//!
//! | | within memory | memory, then register write | register write, then memory | register read, then memory |
//! |---|---|---|---|---|
//! | x86 | Rust's fences | no instruction | Rust's full fence | no instruction |
//! | aarch64 | `dmb osh`, `dmb oshld` | `dmb oshst` | `dsb osh` | `dmb oshld` |
//! | arm | `dmb` | `dsb` | `dsb` | `dmb` |
//! | riscv | Rust's fences | `fence rw,o` | `fence o,rw` | `fence i,rw` |
//!
//! - x86 keeps stores in order with stores and loads with loads, uncached ones among them (Intel SDM 3A, "Memory
//!   Ordering"); only a load may come before an earlier store.
//! - aarch64: devices are in the outer shareable domain at most, and `dmb` orders accesses to Device memory like others (Arm
//!   ARM, "Data Memory Barrier"). The same choice as Linux's since "arm64: io: Relax implicit barriers in default I/O
//!   accessors".
//! - 32-bit Arm (v7 and later): memory behind an outer cache has a store only after a `dsb`.
//! - RISC-V (unprivileged specification, "Fence"): `i` and `o` are input from devices and output to them; devices see main
//!   memory in the order that `fence` gives it for processors.
//!
//! On other architectures Rust's strongest fence stands in. That may not do: [`ORDERS_DEVICES`] is false there, and
//! ORDER_PLATFORM is not accepted (spec 6.1).
//!
//! No `asm!` here says `nomem`, so the compiler moves no access to memory across one either.

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use core::sync::atomic::compiler_fence;
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
use core::sync::atomic::{Ordering, fence};

/// Whether the barriers of this architecture order memory and registers for a real device, as ORDER_PLATFORM demands.
pub(crate) const ORDERS_DEVICES: bool = cfg!(any(
    target_arch = "x86",
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv32",
    target_arch = "riscv64"
));

/// What was read and written before is done, for the device too, when anything is written after (spec 2.7.13.3).
#[inline]
pub(crate) fn release() {
    #[cfg(test)]
    watch::pass(watch::Barrier::Release);
    #[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
    outer_memory();
    #[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
    fence(Ordering::Release);
}

/// What is read and written after comes after what was read before, in the device's order too (spec 2.7.14).
#[inline]
pub(crate) fn acquire() {
    #[cfg(test)]
    watch::pass(watch::Barrier::Acquire);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no operands and changes nothing.
    unsafe {
        core::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "arm")]
    outer_memory();
    #[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
    fence(Ordering::Acquire);
}

/// What was written before can be seen by the device when anything is read after (spec 2.7.13.4.1).
#[inline]
pub(crate) fn full() {
    #[cfg(test)]
    watch::pass(watch::Barrier::Full);
    #[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
    outer_memory();
    #[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
    fence(Ordering::SeqCst);
}

/// All accesses to memory before come before all after, for devices as for processors.
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
#[inline]
fn outer_memory() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no operands and changes nothing.
    unsafe {
        core::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "arm")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("dmb", options(nostack, preserves_flags));
    }
}

/// The device sees what was written to memory before it is told anything by a register write after: a notification (spec
/// 4.1.5.2), or a queue's address.
#[inline]
pub(crate) fn before_register_write() {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    compiler_fence(Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no operands and changes nothing.
    unsafe {
        core::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "arm")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("dsb", options(nostack, preserves_flags));
    }
    #[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("fence rw, o", options(nostack, preserves_flags));
    }
    #[cfg(not(any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv32",
        target_arch = "riscv64"
    )))]
    fence(Ordering::SeqCst);
}

/// A register write has reached the device before memory is read after it: an interrupt is acknowledged before the queues
/// are looked at, so that what comes in between interrupts again.
#[inline]
pub(crate) fn after_register_write() {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    fence(Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no operands and changes nothing.
    unsafe {
        core::arch::asm!("dsb osh", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "arm")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("dsb", options(nostack, preserves_flags));
    }
    #[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("fence o, rw", options(nostack, preserves_flags));
    }
    #[cfg(not(any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv32",
        target_arch = "riscv64"
    )))]
    fence(Ordering::SeqCst);
}

/// Memory is read after the register that said there is something to read: an interrupt status, or the end of a reset.
#[inline]
pub(crate) fn after_register_read() {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    compiler_fence(Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no operands and changes nothing.
    unsafe {
        core::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "arm")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("dmb", options(nostack, preserves_flags));
    }
    #[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("fence i, rw", options(nostack, preserves_flags));
    }
    #[cfg(not(any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv32",
        target_arch = "riscv64"
    )))]
    fence(Ordering::SeqCst);
}

/// Lets a test do something where a barrier is: what another processor may do at the worst moment, which no machine can be
/// made to do, and some never do.
#[cfg(test)]
pub(crate) mod watch {
    use std::boxed::Box;
    use std::cell::RefCell;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Barrier {
        Release,
        Acquire,
        Full,
    }

    type Watcher = Box<dyn FnMut(Barrier)>;

    std::thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
    }

    /// Calls `watcher` at each barrier of this thread during `f`.
    pub(crate) fn during<R>(watcher: impl FnMut(Barrier) + 'static, f: impl FnOnce() -> R) -> R {
        WATCHER.set(Some(Box::new(watcher)));
        let result = f();
        WATCHER.set(None);
        result
    }

    pub(super) fn pass(barrier: Barrier) {
        WATCHER.with_borrow_mut(|watcher| {
            if let Some(watcher) = watcher {
                watcher(barrier);
            }
        });
    }
}
