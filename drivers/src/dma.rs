//! Memory that driver and device share: [`Dma`], allocated for the purpose (rings, headers), [`Outbound`], which the
//! device only reads (pictures), and `Lent`, a caller's buffer for the time of one request. All come from the device's
//! [`DmaContext`]; bouncing and IOMMU mapping happen behind it and nowhere else.

mod context;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
#[cfg(target_has_atomic = "64")]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::error::Cause;

pub use self::context::{Direction, DmaContext, PAGE_LEN};

/// A physically contiguous, zeroed run of memory that a device can reach for as long as the value lives.
///
/// The device may change it at any time, so no reference to the bytes is ever given out: every access is one atomic load
/// or store of the width named (where the machine has that), checked against the length. An access that lies outside or is not aligned is a bug of
/// the caller: a load gives 0, a store is dropped, and debug builds stop.
#[derive(Debug)]
pub struct Dma<D: DmaContext> {
    /// As the device addresses it.
    address: u64,
    start: NonNull<u8>,
    len: usize,
    pages: usize,
    context: D,
}

// SAFETY: the memory is owned and only reached by atomic accesses.
unsafe impl<D: DmaContext> Send for Dma<D> {}
// SAFETY: as for `Send`.
unsafe impl<D: DmaContext> Sync for Dma<D> {}

impl<D: DmaContext> Dma<D> {
    /// Allocates at least `len` bytes, aligned to a page.
    ///
    /// # Errors
    ///
    /// As for [`DmaContext::allocate`].
    pub fn new(context: &D, len: usize, direction: Direction) -> Result<Self, Cause> {
        let pages = len.div_ceil(PAGE_LEN).max(1);
        let (address, start) = context.allocate(pages, direction)?;
        Ok(Self {
            address,
            start,
            len: pages * PAGE_LEN,
            pages,
            context: context.clone(),
        })
    }

    /// Where the device finds the byte at `offset`.
    #[inline]
    pub fn address(&self, offset: usize) -> u64 {
        debug_assert!(offset < self.len);
        self.address + offset as u64
    }

    /// Length in bytes, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The same memory once more, for the device's side of a test. It frees nothing, and may not be used longer than this.
    #[cfg(test)]
    pub(crate) fn other_side(&self) -> Self {
        Self {
            address: self.address,
            start: self.start,
            len: self.len,
            pages: 0,
            context: self.context.clone(),
        }
    }

    /// Gives the memory up without freeing it: a device that could not be stopped may still write there.
    pub fn leak(&mut self) {
        self.pages = 0;
    }

    /// Never true: there is at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        // There is at least a page.
        let inside = offset <= self.len - size_of::<T>() && offset.is_multiple_of(align_of::<T>());
        debug_assert!(inside, "DMA access at {offset} of {}", self.len);
        if !inside {
            return None;
        }
        // SAFETY: the offset lies inside the allocation.
        Some(unsafe { self.start.add(offset) }.cast())
    }

    /// Loads two little-endian bytes.
    #[inline]
    pub fn load_u16(&self, offset: usize) -> u16 {
        let Some(at) = self.at::<u16>(offset) else {
            return 0;
        };
        // SAFETY: inside the allocation, which is page-aligned, so `at` is aligned; all accesses to it are atomic.
        u16::from_le(unsafe { AtomicU16::from_ptr(at.as_ptr()) }.load(Ordering::Relaxed))
    }

    /// Stores two bytes, little-endian.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16) {
        if let Some(at) = self.at::<u16>(offset) {
            // SAFETY: as for `load_u16`.
            unsafe { AtomicU16::from_ptr(at.as_ptr()) }.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Loads twice four little-endian bytes, at `offset`, a multiple of 4.
    #[inline]
    pub fn load_u32s(&self, offset: usize) -> [u32; 2] {
        let Some(at) = self.at::<[u32; 2]>(offset) else {
            return [0; 2];
        };
        // SAFETY: as for `load_u16`, for both halves of the eight bytes.
        let halves = unsafe { at.cast::<[AtomicU32; 2]>().as_ref() };
        halves
            .each_ref()
            .map(|half| u32::from_le(half.load(Ordering::Relaxed)))
    }

    /// Loads eight little-endian bytes, as two halves on a machine without atomics of 64 bits.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        let Some(at) = self.at::<u64>(offset) else {
            return 0;
        };
        #[cfg(target_has_atomic = "64")]
        // SAFETY: as for `load_u16`.
        return u64::from_le(unsafe { AtomicU64::from_ptr(at.as_ptr()) }.load(Ordering::Relaxed));
        #[cfg(not(target_has_atomic = "64"))]
        {
            // SAFETY: as for `load_u16`; both halves lie inside.
            let [low, high] = unsafe { at.cast::<[AtomicU32; 2]>().as_ref() };
            let half = |half: &AtomicU32| u64::from(u32::from_le(half.load(Ordering::Relaxed)));
            half(low) | half(high) << 32
        }
    }

    /// Stores eight bytes, little-endian, as two halves on a machine without atomics of 64 bits. No ring needs more: the
    /// device reads a descriptor only once it was made available.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) {
        if let Some(at) = self.at::<u64>(offset) {
            #[cfg(target_has_atomic = "64")]
            // SAFETY: as for `load_u16`.
            unsafe { AtomicU64::from_ptr(at.as_ptr()) }.store(value.to_le(), Ordering::Relaxed);
            #[cfg(not(target_has_atomic = "64"))]
            {
                // SAFETY: as for `load_u16`; both halves lie inside.
                let [low, high] = unsafe { at.cast::<[AtomicU32; 2]>().as_ref() };
                low.store((value as u32).to_le(), Ordering::Relaxed);
                high.store(((value >> 32) as u32).to_le(), Ordering::Relaxed);
            }
        }
    }

    /// Stores twice eight bytes, little-endian, at `offset`, a multiple of 8.
    #[inline(always)]
    pub fn store_pair(&self, offset: usize, pair: [u64; 2]) {
        let [first, second] = pair;
        #[cfg(target_has_atomic = "64")]
        if let Some(at) = self.at::<[u64; 2]>(offset) {
            let at = at.cast::<u64>();
            // SAFETY: as for `load_u16`, for both halves of the sixteen bytes.
            unsafe {
                AtomicU64::from_ptr(at.as_ptr()).store(first.to_le(), Ordering::Relaxed);
                AtomicU64::from_ptr(at.add(1).as_ptr()).store(second.to_le(), Ordering::Relaxed);
            }
        }
        #[cfg(not(target_has_atomic = "64"))]
        {
            self.store_u64(offset, first);
            self.store_u64(offset + 8, second);
        }
    }

    /// Stores `bytes` at `offset`, a multiple of 8; the rest of the last eight bytes is set to zero.
    #[inline(always)]
    pub fn store_bytes(&self, offset: usize, bytes: &[u8]) {
        // The length that headers have most.
        if let Ok(pair) = <&[u8; 16]>::try_from(bytes) {
            let word = u128::from_le_bytes(*pair);
            return self.store_pair(offset, [word as u64, (word >> 64) as u64]);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            self.store_u64(offset + index * 8, u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(rest) {
                *to = *from;
            }
            self.store_u64(offset + words.len() * 8, u64::from_le_bytes(word));
        }
    }

    /// Loads bytes from `offset`, a multiple of 8, until `bytes` is full.
    #[inline]
    pub fn load_bytes(&self, offset: usize, bytes: &mut [u8]) {
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = self.load_u64(offset + index * 8).to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
    }
}

impl<D: DmaContext> Drop for Dma<D> {
    fn drop(&mut self) {
        if self.pages == 0 {
            return;
        }
        // SAFETY: allocated in `new` with these values, by a context of which this is a clone, and freed only here.
        unsafe {
            self.context.release(self.address, self.start, self.pages);
        }
    }
}

/// Memory that a device may read for a long time, and has no business writing, while the driver reads and writes it as
/// plain bytes: a framebuffer.
///
/// It comes in pieces, each physically contiguous, so that a large one needs no large run of free memory. There is one
/// `Outbound` for it and so one writer; what keeps it from being freed under the device is a [`Lease`] with the driver
/// that told the device where it is.
///
/// A device that reads while the driver writes sees some bytes of before and some of after, no worse. What was written
/// before a request was made available to the device is visible to it then: [`crate::Queue::kick`] orders the two.
#[derive(Debug)]
pub struct Outbound<D: DmaContext> {
    pieces: Arc<Vec<Dma<D>>>,
    /// Of every piece but the last, which ends where `len` does.
    piece_len: usize,
    len: usize,
}

/// Keeps an [`Outbound`]'s memory from being freed, for as long as a device may read it. Forget it, with
/// [`core::mem::forget`], when that is for ever.
#[derive(Debug)]
pub struct Lease<D: DmaContext> {
    pieces: Arc<Vec<Dma<D>>>,
}

impl<D: DmaContext> Clone for Lease<D> {
    fn clone(&self) -> Self {
        let pieces = self.pieces.clone();
        Self { pieces }
    }
}

impl<D: DmaContext> Outbound<D> {
    /// Allocates `len` zero bytes in pieces of `piece_len` and a rest.
    ///
    /// # Errors
    ///
    /// As for [`DmaContext::allocate`], [`Cause::NoMemory`], and [`Cause::InvalidParameter`] if either length is 0.
    pub fn new(context: &D, len: usize, piece_len: usize) -> Result<Self, Cause> {
        if len == 0 || piece_len == 0 {
            return Err(Cause::InvalidParameter("memory of no bytes"));
        }
        let count = len.div_ceil(piece_len);
        let mut pieces = Vec::new();
        pieces
            .try_reserve_exact(count)
            .map_err(|_| Cause::NoMemory)?;
        for index in 0..count {
            let rest = len - index * piece_len;
            pieces.push(Dma::new(context, rest.min(piece_len), Direction::ToDevice)?);
        }
        Ok(Self {
            pieces: Arc::new(pieces),
            piece_len,
            len,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: there is at least a byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the device finds the pieces, in order, and how long each is.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, usize)> {
        let pieces = self.pieces.iter().enumerate();
        pieces.map(|(index, piece)| (piece.address(0), self.len_of(index)))
    }

    /// A share in the ownership, for as long as the device knows of the memory.
    pub fn lease(&self) -> Lease<D> {
        let pieces = self.pieces.clone();
        Lease { pieces }
    }

    /// The bytes of piece `index`.
    #[inline]
    pub fn piece(&self, index: usize) -> Option<&[u8]> {
        let raw = self.raw(index)?;
        // SAFETY: the piece is allocated and initialised (the context zeroes it) for as long as `self.pieces` holds it. Nothing
        // in this program writes it meanwhile: the only access to it is through the one `Outbound`, borrowed here, since
        // a `Lease` gives none and nothing else has these `Dma`s. The device was given it for reading.
        Some(unsafe { raw.as_ref() })
    }

    /// The bytes of piece `index`, for writing.
    #[inline]
    pub fn piece_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let mut raw = self.raw(index)?;
        // SAFETY: as for `piece`, and `&mut self` is unique. That the device reads the bytes at the same time is an access
        // from outside the program, which can't change what the program does; the pointer comes from the context and the
        // device's address for it was given away, so the compiler must expect that fences make the writes visible.
        Some(unsafe { raw.as_mut() })
    }

    #[inline]
    fn raw(&self, index: usize) -> Option<NonNull<[u8]>> {
        let start = self.pieces.get(index)?.start;
        Some(NonNull::slice_from_raw_parts(start, self.len_of(index)))
    }

    /// The length of a piece that there is, no more than was allocated for it in `new`.
    #[inline]
    fn len_of(&self, index: usize) -> usize {
        (self.len - index * self.piece_len).min(self.piece_len)
    }
}

/// Which side of a request a segment is on (spec 2.6: device-readable segments come before device-writable ones).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads it.
    Readable,
    /// The device writes it.
    Writable,
}

impl Access {
    fn direction(self) -> Direction {
        match self {
            Self::Readable => Direction::ToDevice,
            Self::Writable => Direction::FromDevice,
        }
    }
}

/// A run of a caller's bytes: named first, then lent to a device and taken back.
#[derive(Debug)]
pub(crate) struct Lent {
    bytes: NonNull<[u8]>,
    access: Access,
    /// Where the device finds them; `None` while they are not lent.
    address: Option<u64>,
}

// SAFETY: a record of a loan; the bytes are only reached through `lend` and `take_back`, whose callers vouch for them.
unsafe impl Send for Lent {}

impl Lent {
    /// Takes down which bytes are to be lent.
    #[inline]
    pub(crate) fn named(bytes: NonNull<[u8]>, access: Access) -> Self {
        Self {
            bytes,
            access,
            address: None,
        }
    }

    /// Lends the bytes to the device.
    ///
    /// # Errors
    ///
    /// As for [`DmaContext::map`]; then they are not lent.
    ///
    /// # Safety
    ///
    /// They must be valid and not empty, and nothing but the device may access them (in a way that conflicts with the
    /// access named) or free them until [`Self::take_back`].
    #[inline]
    pub(crate) unsafe fn lend<D: DmaContext>(&mut self, context: &D) -> Result<(), Cause> {
        // SAFETY: the caller's promise is that of `map`.
        self.address = Some(unsafe { context.map(self.bytes, self.access.direction()) }?);
        Ok(())
    }

    /// Where the device finds the bytes, if they are lent.
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        self.address.unwrap_or(0)
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Who does what with them.
    #[inline]
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Ends the loan, if there is one; what the device wrote is in the bytes now.
    ///
    /// # Safety
    ///
    /// The bytes must still be valid, the device be done with them, and `context` be a clone of that of
    /// [`Self::lend`].
    #[inline]
    pub(crate) unsafe fn take_back<D: DmaContext>(&mut self, context: &D) {
        if let Some(address) = self.address.take() {
            // SAFETY: the address is the one that `map` gave for these bytes; validity is the caller's promise.
            unsafe { context.unmap(address, self.bytes, self.access.direction()) }
        }
    }
}
