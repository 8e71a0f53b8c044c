//! [`StockDma`]: a `Hal` of `virtio-drivers` as a [`DmaContext`].

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};

use crate::dma::{Direction, DmaContext, PAGE_LEN};
use crate::error::Cause;

const _: () = assert!(PAGE_SIZE == PAGE_LEN);

/// The [`DmaContext`] of a kernel that has a [`Hal`] for the crate `virtio-drivers`.
///
/// That trait knows no device, so all devices are the same to it; and `share` and `mmio_phys_to_virt` can't say that they
/// failed. Address 0 is taken for a failure of `share`, as it is documented for `dma_alloc`. Whether an address is one of
/// registers is the `Hal`'s to find out.
pub struct StockDma<H>(PhantomData<fn() -> H>);

#[expect(unsafe_code, reason = "that trait says nothing of it")]
impl<H> StockDma<H> {
    /// One for any device.
    ///
    /// # Safety
    ///
    /// `mmio_phys_to_virt` of `H` is asked for what a device says are its registers. It must map nothing that is memory of
    /// the machine, whatever it is asked for: it may stop the kernel, or map something that is nobody's.
    pub const unsafe fn new() -> Self {
        Self(PhantomData)
    }
}

impl<H> Clone for StockDma<H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for StockDma<H> {}

impl<H> fmt::Debug for StockDma<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StockDma")
    }
}

impl From<Direction> for BufferDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::ToDevice => Self::DriverToDevice,
            Direction::FromDevice => Self::DeviceToDriver,
            Direction::Both => Self::Both,
        }
    }
}

#[expect(unsafe_code, reason = "hands on what it is given")]
// SAFETY: `Hal` promises the same of what these methods give: zeroed pages that are nobody else's, a buffer or a copy of it
// that the device reaches until `unshare`, a valid mapping of registers that nothing aliases; of the last, that it is of
// registers, the caller of `new` vouched for.
unsafe impl<H: Hal + 'static> DmaContext for StockDma<H> {
    fn allocate(&self, pages: usize, direction: Direction) -> Result<(u64, NonNull<u8>), Cause> {
        match H::dma_alloc(pages, direction.into()) {
            (0, _) => Err(Cause::NoDmaMemory),
            allocated => Ok(allocated),
        }
    }

    unsafe fn release(&self, address: u64, start: NonNull<u8>, pages: usize) {
        // SAFETY: the caller's promise is the same.
        let code = unsafe { H::dma_dealloc(address, start, pages) };
        if code != 0 {
            log::error!("the platform did not take back {pages} DMA pages: {code}");
        }
    }

    #[inline]
    unsafe fn map(&self, bytes: NonNull<[u8]>, direction: Direction) -> Result<u64, Cause> {
        // SAFETY: the caller's promise is the same.
        match unsafe { H::share(bytes, direction.into()) } {
            0 => Err(Cause::NoDmaMemory),
            address => Ok(address),
        }
    }

    #[inline]
    unsafe fn unmap(&self, address: u64, bytes: NonNull<[u8]>, direction: Direction) {
        // SAFETY: the caller's promise is the same.
        unsafe { H::unshare(address, bytes, direction.into()) }
    }

    fn map_registers(&self, address: u64, len: usize) -> Result<NonNull<u8>, Cause> {
        // SAFETY: the `Hal` refuses what can't be registers, as the caller of `new` vouched for, and the bus assigned the
        // rest to the one device that this context is for.
        Ok(unsafe { H::mmio_phys_to_virt(address, len) })
    }
}
