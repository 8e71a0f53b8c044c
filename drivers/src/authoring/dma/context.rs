//! [`DmaContext`]: how one device reaches memory, and how its registers are reached. The one trait that a kernel implements.

use core::ptr::NonNull;

use crate::device::DeviceName;
use crate::error::Cause;

/// The unit in which memory for devices is allocated, in bytes. A context's own pages may be larger.
pub const PAGE_LEN: usize = 4096;

/// Who reads and who writes memory that is shared with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver writes, the device reads.
    ToDevice,
    /// The device writes, the driver reads.
    FromDevice,
    /// Both do both.
    Both,
}

/// What one device's driver knows of memory: a value that each [`Transport`](crate::Transport) owns, so that it can be
/// different for each device of a kernel: physical addresses for one, an IOMMU domain or bounce buffers for another.
///
/// Every address that a device is given comes from here. Whoever keeps memory that was allocated or mapped keeps a clone
/// of the context, to give it back by; so a clone is to be cheap: a number or a reference to what is shared. A kernel
/// without an IOMMU, whose memory is mapped one to one or at a fixed distance, has a type without a field, and all of this
/// costs an addition for each buffer.
///
/// [`crate::stock::StockDma`] makes one of any `virtio_drivers::Hal`.
///
/// # Safety
///
/// Drivers hand these addresses to devices, and read and write what is behind these pointers. So whoever implements this
/// promises that
///
/// - [`Self::allocate`] gives memory that is zeroed, aligned to [`PAGE_LEN`], valid for reads and writes of
///   `pages * PAGE_LEN` bytes, and nobody else's until [`Self::release`]; the device reaches it at the address, in one run;
/// - the device reaches the bytes of [`Self::map`] at the address, in one run, until [`Self::unmap`], or reaches a copy
///   that is made and brought back then; and the bytes are touched only between the call and the end of `unmap`;
/// - what [`Self::map_registers`] gives is mapped for good as the bus wants it (uncached), and is no memory that the program
///   knows otherwise: the address is an allegation of the device;
/// - clones are about the same device, and give back what any other of them gave out.
pub unsafe trait DmaContext: Clone + Send + Sync + 'static {
    /// Learns whether device and driver agreed on ACCESS_PLATFORM (spec 6): if not, the device uses physical addresses,
    /// whatever an IOMMU is set up for. Called in each negotiation, before anything is allocated or mapped for the session
    /// that begins. It is about this value and what is cloned of it from then on; earlier clones stay as they were, and
    /// what they gave out is never handed to the device again.
    ///
    /// # Errors
    ///
    /// The device can't be driven so, such as one that bypasses an IOMMU where that is not allowed. Initialisation fails
    /// with it.
    fn negotiated(&mut self, device: DeviceName, access_platform: bool) -> Result<(), Cause> {
        let _ = (device, access_platform);
        Ok(())
    }

    /// Allocates `pages` pages, at least one, that driver and device share. Gives the address for the device and for the
    /// driver.
    ///
    /// # Errors
    ///
    /// [`Cause::NoDmaMemory`], or why it can't be mapped.
    fn allocate(&self, pages: usize, direction: Direction) -> Result<(u64, NonNull<u8>), Cause>;

    /// Takes back what [`Self::allocate`] gave.
    ///
    /// # Safety
    ///
    /// `address`, `start` and `pages` are of one allocation, which nobody uses any more, the device included.
    unsafe fn release(&self, address: u64, start: NonNull<u8>, pages: usize);

    /// Lends `bytes` to the device. Gives their address for it.
    ///
    /// # Errors
    ///
    /// They can't be mapped, or there is no memory for a copy of them: the request fails with the cause.
    ///
    /// # Safety
    ///
    /// The bytes are valid and not empty, and until [`Self::unmap`] nobody frees them, nor accesses them in a way that
    /// conflicts with `direction`.
    unsafe fn map(&self, bytes: NonNull<[u8]>, direction: Direction) -> Result<u64, Cause>;

    /// Ends the loan of `bytes`: what the device wrote is in them afterwards.
    ///
    /// # Safety
    ///
    /// `address` is what [`Self::map`] gave for the same bytes and direction, the bytes are still valid, and the device is
    /// done with them.
    unsafe fn unmap(&self, address: u64, bytes: NonNull<[u8]>, direction: Direction);

    /// Maps the `len` bytes of device registers at a physical address.
    ///
    /// # Errors
    ///
    /// That can't be registers, since it is memory of the machine or beyond what the processor can address; or there is
    /// no room to map them.
    fn map_registers(&self, address: u64, len: usize) -> Result<NonNull<u8>, Cause>;
}
