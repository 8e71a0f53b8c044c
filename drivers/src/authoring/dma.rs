//! Memory that driver and device share: [`Dma`], allocated for the purpose (rings, headers), [`Outbound`], which the
//! device only reads (pictures), and `Lent`, a caller's buffer for the time of one request. All come from the device's
//! [`DmaContext`]; bouncing and IOMMU mapping happen behind it and nowhere else.

mod context;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::{Deref, Range};
use core::ptr::NonNull;
#[cfg(target_has_atomic = "64")]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::error::Cause;

pub use self::context::{Direction, DmaContext, PAGE_LEN};

/// A physically contiguous, zeroed run of memory that a device can reach for as long as the value lives.
///
/// The device may change it at any time, so no reference to the bytes is ever given out: it is read and written as `Part`s,
/// which are made of atomic numbers.
#[derive(Debug)]
pub struct Dma<D: DmaContext> {
    /// As the device addresses it.
    address: u64,
    start: NonNull<u8>,
    len: usize,
    pages: usize,
    context: D,
}

// SAFETY: the memory is owned and only reached through `Part`s, whose accesses are atomic, or by its one `Outbound`.
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
        debug_assert!(offset <= self.len);
        self.address + offset as u64
    }

    /// Length in bytes, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: there is at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One cell of it, `offset` bytes behind the start.
    ///
    /// # Errors
    ///
    /// As for [`Self::array`].
    pub(crate) fn cell<C: Cell>(self: &Arc<Self>, offset: usize) -> Result<Part<C, D>, Cause> {
        let Part {
            memory,
            address,
            cells,
        } = self.array::<C>(offset, 1)?;
        Ok(Part {
            memory,
            address,
            cells: cells.cast(),
        })
    }

    /// `count` cells of it in a row, from `offset` bytes behind the start. The same place should always be seen as the same
    /// cells: atomic accesses of different widths have no order.
    ///
    /// # Errors
    ///
    /// [`Cause::InvalidParameter`] if they are not all inside, or not aligned.
    pub(crate) fn array<C: Cell>(
        self: &Arc<Self>,
        offset: usize,
        count: usize,
    ) -> Result<Part<[C], D>, Cause> {
        let len = count.checked_mul(size_of::<C>());
        let end = len.and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > self.len) || !offset.is_multiple_of(align_of::<C>()) {
            return Err(Cause::InvalidParameter("part outside its memory"));
        }
        // SAFETY: the offset is not behind the end of the allocation.
        let start = unsafe { self.start.add(offset) }.cast();
        Ok(Part {
            memory: self.clone(),
            address: self.address(offset),
            cells: NonNull::slice_from_raw_parts(start, count),
        })
    }
}

impl<D: DmaContext> Drop for Dma<D> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with these values, by a context of which this is a clone, and freed only here.
        unsafe {
            self.context.release(self.address, self.start, self.pages);
        }
    }
}

/// A little-endian number of 16 bits in shared memory. Each access is one atomic load or store.
#[repr(transparent)]
pub(crate) struct Le16(AtomicU16);

/// A little-endian number of 32 bits in shared memory. Each access is one atomic load or store.
#[repr(transparent)]
pub(crate) struct Le32(AtomicU32);

/// A little-endian number of 64 bits in shared memory. Each access is one atomic load or store, or two of half the width on
/// a machine without atomics of 64 bits. No ring needs more: the device reads a descriptor only once it was made available.
#[repr(transparent)]
pub(crate) struct Le64(
    #[cfg(target_has_atomic = "64")] AtomicU64,
    #[cfg(not(target_has_atomic = "64"))] [Le32; 2],
);

impl Le16 {
    #[inline(always)]
    pub(crate) fn load(&self) -> u16 {
        u16::from_le(self.0.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn store(&self, value: u16) {
        self.0.store(value.to_le(), Ordering::Relaxed);
    }
}

impl Le32 {
    #[inline(always)]
    pub(crate) fn load(&self) -> u32 {
        u32::from_le(self.0.load(Ordering::Relaxed))
    }

    #[cfg(not(target_has_atomic = "64"))]
    fn store(&self, value: u32) {
        self.0.store(value.to_le(), Ordering::Relaxed);
    }
}

#[cfg(target_has_atomic = "64")]
impl Le64 {
    #[inline(always)]
    pub(crate) fn load(&self) -> u64 {
        u64::from_le(self.0.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn store(&self, value: u64) {
        self.0.store(value.to_le(), Ordering::Relaxed);
    }
}

#[cfg(not(target_has_atomic = "64"))]
impl Le64 {
    pub(crate) fn load(&self) -> u64 {
        let Self([low, high]) = self;
        u64::from(low.load()) | u64::from(high.load()) << 32
    }

    pub(crate) fn store(&self, value: u64) {
        let Self([low, high]) = self;
        low.store(value as u32);
        high.store((value >> 32) as u32);
    }
}

/// Stores `bytes` in `words`, as far as they reach; the rest of the last word is set to zero.
#[inline(always)]
pub(crate) fn store_bytes(words: &[Le64], bytes: &[u8]) {
    // The length that headers have most.
    if let Ok(pair) = <&[u8; 16]>::try_from(bytes)
        && let Some([low, high]) = words.first_chunk()
    {
        let pair = u128::from_le_bytes(*pair);
        low.store(pair as u64);
        high.store((pair >> 64) as u64);
        return;
    }
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter().zip(whole) {
        word.store(u64::from_le_bytes(*bytes));
    }
    if !rest.is_empty()
        && let Some(word) = words.get(whole.len())
    {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(rest) {
            *to = *from;
        }
        word.store(u64::from_le_bytes(bytes));
    }
}

/// Loads `bytes` from `words`, as far as they reach.
pub(crate) fn load_bytes(words: &[Le64], bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_mut(8)) {
        for (to, from) in bytes.iter_mut().zip(word.load().to_le_bytes()) {
            *to = from;
        }
    }
}

/// What shared memory can be seen as.
///
/// # Safety
///
/// It consists of atomic numbers and nothing else: any bytes are a value of it, and they may change while there is a
/// reference to it.
pub(crate) unsafe trait Cell {}

// SAFETY: an atomic number.
unsafe impl Cell for Le16 {}
// SAFETY: as above.
unsafe impl Cell for Le32 {}
// SAFETY: an atomic number, or two.
unsafe impl Cell for Le64 {}
// SAFETY: an array has nothing between its elements.
unsafe impl<C: Cell, const N: usize> Cell for [C; N] {}

/// A part of a [`Dma`], as a cell or an array of them. Where it is was checked when it was made ([`Dma::array`]), so an access
/// costs what an access to a field or a slice does. It keeps the whole memory from being freed.
pub(crate) struct Part<C: ?Sized, D: DmaContext> {
    memory: Arc<Dma<D>>,
    address: u64,
    cells: NonNull<C>,
}

// SAFETY: what is reached through it is atomic.
unsafe impl<C: ?Sized, D: DmaContext> Send for Part<C, D> {}
// SAFETY: as for `Send`.
unsafe impl<C: ?Sized, D: DmaContext> Sync for Part<C, D> {}

impl<C: ?Sized, D: DmaContext> Part<C, D> {
    /// Where the device finds it.
    #[inline(always)]
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Keeps the memory from ever being freed: a device that could not be stopped may still write there.
    pub(crate) fn leak(&self) {
        core::mem::forget(self.memory.clone());
    }
}

impl<C, D: DmaContext> Part<[C], D> {
    /// Some of its cells.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Self> {
        let before = range.start * size_of::<C>();
        let cells = self.get(range)?;
        Some(Self {
            memory: self.memory.clone(),
            address: self.address + before as u64,
            cells: NonNull::from(cells),
        })
    }
}

impl<C: ?Sized, D: DmaContext> Clone for Part<C, D> {
    fn clone(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            ..*self
        }
    }
}

impl<C: ?Sized, D: DmaContext> Deref for Part<C, D> {
    type Target = C;

    #[inline(always)]
    fn deref(&self) -> &C {
        // SAFETY: the cells lie, aligned, in the memory that `self.memory` keeps, which is initialised (the context zeroes it).
        // They are cells or an array of them, so whatever the device makes of their bytes is a value, at any time.
        unsafe { self.cells.as_ref() }
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
/// before a request was made available to the device is visible to it then: [`Queue::kick`](super::queue::Queue::kick) orders
/// the two.
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

/// A run of a caller's bytes: named first, then lent to a device and taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent {
    bytes: NonNull<[u8]>,
    direction: Direction,
    is_lent: bool,
    /// Where the device finds them while they are lent.
    address: u64,
}

// SAFETY: a record of a loan; the bytes are only reached through `lend` and `take_back`, whose callers vouch for them.
unsafe impl Send for Lent {}

impl Lent {
    /// No bytes, and not lent.
    pub(crate) fn none() -> Self {
        Self::named(NonNull::from(&mut []), Direction::ToDevice)
    }

    /// A loan that no context made, of `len` bytes that the device finds at `address`.
    #[cfg(test)]
    pub(crate) fn at(address: u64, len: usize) -> Self {
        let bytes = NonNull::slice_from_raw_parts(NonNull::dangling(), len);
        Self {
            address,
            ..Self::named(bytes, Direction::ToDevice)
        }
    }

    /// Takes down which bytes are to be lent.
    #[inline]
    pub(crate) fn named(bytes: NonNull<[u8]>, direction: Direction) -> Self {
        Self {
            bytes,
            direction,
            is_lent: false,
            address: 0,
        }
    }

    /// Lends the bytes that `named` names to the device, and takes that down here, where no other loan is.
    ///
    /// # Errors
    ///
    /// As for [`DmaContext::map`]; then they are not lent.
    ///
    /// # Safety
    ///
    /// They must be valid and not empty, and nothing but the device may access them (in a way that conflicts with the
    /// direction named) or free them until [`Self::take_back`].
    #[inline(always)]
    pub(crate) unsafe fn lend<D: DmaContext>(
        &mut self,
        named: Self,
        context: &D,
    ) -> Result<(), Cause> {
        let Self {
            bytes, direction, ..
        } = named;
        // SAFETY: the caller's promise is that of `map`.
        let address = unsafe { context.map(bytes, direction) }?;
        // One by one: as a whole, the padding would be moved as well.
        self.bytes = bytes;
        self.direction = direction;
        self.address = address;
        self.is_lent = true;
        Ok(())
    }

    /// Where the device finds the bytes, if they are lent.
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the device writes them. (What it writes it may read as well.)
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.direction != Direction::ToDevice
    }

    /// Ends the loan, if there is one; what the device wrote is in the bytes now.
    ///
    /// # Safety
    ///
    /// The bytes must still be valid, the device be done with them, and `context` be a clone of that of
    /// [`Self::lend`].
    #[inline(always)]
    pub(crate) unsafe fn take_back<D: DmaContext>(&mut self, context: &D) {
        if core::mem::take(&mut self.is_lent) {
            // SAFETY: the address is the one that `map` gave for these bytes; validity is the caller's promise.
            unsafe { context.unmap(self.address, self.bytes, self.direction) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeDma, Memory};

    fn page(memory: &Memory) -> Arc<Dma<FakeDma>> {
        let dma = FakeDma::new(memory.clone());
        Arc::new(Dma::new(&dma, 1, Direction::Both).expect("memory"))
    }

    #[test]
    fn a_part_is_aligned_and_inside_its_memory() {
        let page = page(&Memory::fresh());
        let words = PAGE_LEN / 8;
        for (offset, count) in [(0, words), (8, words - 1), (PAGE_LEN - 8, 1), (PAGE_LEN, 0)] {
            let part = page.array::<Le64>(offset, count);
            let seen = part.map(|part| (part.len(), part.address() - page.address(0)));
            assert_eq!(seen, Ok((count, offset as u64)));
        }
        for (offset, count) in [
            (0, words + 1),
            (8, words),
            (PAGE_LEN, 1),
            (4, 1),
            (usize::MAX - 7, 1),
            (0, usize::MAX),
        ] {
            let refused = page.array::<Le64>(offset, count).is_err();
            assert!(refused, "{count} words at {offset}");
        }
        assert!(page.cell::<Le16>(PAGE_LEN - 2).is_ok());
        assert!(page.cell::<Le16>(PAGE_LEN).is_err());
    }

    #[test]
    fn a_part_keeps_the_memory_that_it_is_of() {
        let memory = Memory::fresh();
        let page = page(&memory);
        let word = page.cell::<Le64>(8).expect("inside");
        drop(page);
        word.store(7);
        let mut bytes = [0; 8];
        assert!(memory.read(word.address(), &mut bytes));
        assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0]);
        drop(word);
        memory.assert_clean();
    }

    #[test]
    fn bytes_of_any_number_go_into_words_and_come_out() {
        let page = page(&Memory::fresh());
        let words = page.array::<Le64>(0, 4).expect("inside");
        let bytes: [u8; 32] = core::array::from_fn(|index| index as u8 + 1);
        for len in 0..=bytes.len() {
            for word in words.iter() {
                word.store(u64::MAX);
            }
            store_bytes(&words, &bytes[..len]);
            let mut seen = [0; 32];
            load_bytes(&words, &mut seen);
            let end = len.next_multiple_of(8);
            assert_eq!(seen[..len], bytes[..len]);
            assert_eq!(seen[len..end], [0; 7][..end - len], "the rest of the word");
            assert_eq!(seen[end..], [0xff; 32][end..], "what is behind it");
        }
        let longer = [1; 40];
        store_bytes(&words, &longer);
        let mut seen = [0; 40];
        load_bytes(&words, &mut seen);
        assert_eq!((&seen[..32], &seen[32..]), (&[1; 32][..], &[0; 8][..]));
    }
}
