//! For `make bench` alone (feature `peers`): a disk in other hands than those of our driver.
//!
//! [`stock`] is the driver of the crate `virtio-drivers`, unpatched, on our transport, in a task that sleeps between interrupts as
//! ours do. [`ring`] is no driver at all, but a virtqueue that was filled once and is handed to the device again and again: what
//! the device can do, and a kick costs.
//!
//! With `peer=yes` among the guest's options the first disk is kept for them. What they lend to the device is never freed, so
//! that it does not matter when they are broken off.

#![allow(unsafe_code)]

mod ring;
mod stock;

use alloc::format;
use alloc::string::String;
use core::fmt::Display;
use core::ptr::NonNull;

use spin::Mutex;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use vringlet::stock::IntoStock;
use vringlet::{Direction, DmaContext};

use super::{DeviceTransport, Found, Interrupts};
use crate::platform::fw_cfg;
use crate::platform::interrupts::Event;
use crate::platform::memory::dma::KernelDma;
use crate::runtime::task::{self, EndOfRound};

pub use ring::replay;
pub use stock::{Access, Load, run};

type Transport = IntoStock<DeviceTransport>;

static KEPT: Mutex<Option<(Transport, Interrupts)>> = Mutex::new(None);

/// Whether a disk is to be kept.
pub(super) fn is_wanted() -> bool {
    fw_cfg::option("peer").is_some() && KEPT.lock().is_none()
}

/// Keeps a disk, and gives the reason why our driver does not have it.
pub(super) fn keep(found: Found) -> String {
    // SAFETY: what uses it here are drivers of `virtio-drivers` with a `Hal` that frees nothing, and `ring`, which does so neither.
    match unsafe { IntoStock::new(found.transport) } {
        Ok(transport) => {
            *KEPT.lock() = Some((transport, found.interrupts));
            "kept for a peer".into()
        }
        Err(error) => text(error),
    }
}

fn take() -> Result<(Transport, Interrupts), String> {
    let kept = KEPT.lock().take();
    kept.ok_or_else(|| "no disk was kept, or it is used already".into())
}

fn text(error: impl Display) -> String {
    format!("{error}")
}

/// The kernel's memory, as `virtio-drivers` wants to be told of it.
struct KernelHal;

// SAFETY: all is as `KernelDma` has it, but that nothing is freed.
unsafe impl Hal for KernelHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // 0 is that crate's word for none.
        KernelDma
            .allocate(pages, Direction::Both)
            .unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, len: usize) -> NonNull<u8> {
        let mapped = KernelDma.map_registers(address, len);
        mapped.unwrap_or(NonNull::dangling())
    }

    #[inline]
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise is the same. That crate has no word for a buffer that can't be lent.
        unsafe { KernelDma.map(buffer, ours(direction)) }.unwrap_or(0)
    }

    #[inline]
    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // SAFETY: the caller's promise is the same.
        unsafe { KernelDma.unmap(address, buffer, ours(direction)) }
    }
}

#[inline]
fn ours(direction: BufferDirection) -> Direction {
    match direction {
        BufferDirection::DriverToDevice => Direction::ToDevice,
        BufferDirection::DeviceToDriver => Direction::FromDevice,
        BufferDirection::Both => Direction::Both,
    }
}

/// Wakes the one task that waits for the device, once a round.
struct Heard {
    interrupts: Interrupts,
    event: Event,
}

impl Heard {
    /// From now on.
    fn serve(interrupts: Interrupts) -> &'static Self {
        let event = Event::new();
        let heard: &'static Self =
            alloc::boxed::Box::leak(alloc::boxed::Box::new(Self { interrupts, event }));
        task::serve(heard);
        heard
    }
}

impl EndOfRound for Heard {
    #[inline]
    fn end_round(&self) -> bool {
        if self.interrupts.take(1) {
            self.event.raise();
        }
        false
    }

    #[inline]
    fn prepare_to_sleep(&self) -> bool {
        !self.interrupts.has_come(1)
    }
}
