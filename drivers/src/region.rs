//! [`Region`]: memory that belongs to a device and is mapped for the driver's side to read and write: a persistent
//! memory region, a shared-memory region.

use core::ops::Range;
use core::ptr::NonNull;

use crate::error::Cause;

/// The unit of access. An aligned word that lies inside what is written is written by one store, so that whoever looks at
/// the memory later, after whatever happened, finds all of it or nothing.
pub const WORD_LEN: usize = size_of::<u64>();

/// A run of memory that the device may look at and change at any time.
///
/// No reference to the bytes is ever given out. They are copied in and out by volatile accesses, a word at a time where
/// addresses allow, each inside the bounds. Writing takes `&mut`, so within the program nobody reads what is half
/// written; what the device does meanwhile shows as bytes of before or after, and no worse.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is the value's own as far as this program is concerned (see `new`), and is not bound to a thread.
unsafe impl Send for Region {}
// SAFETY: `&Region` only reads.
unsafe impl Sync for Region {}

impl Region {
    /// Takes over the `len` bytes at `start`.
    ///
    /// # Safety
    ///
    /// `start..start + len` must be mapped as memory, readable and writable, for as long as the value lives; and nothing
    /// else in this program may reach it, by this mapping or another one.
    pub unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes from `offset` on until `bytes` is full.
    ///
    /// # Errors
    ///
    /// [`Cause::OutOfRange`] if there are not that many; nothing is copied then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Cause> {
        let mut rest = bytes;
        for piece in self.pieces(offset, rest.len() as u64)? {
            let (part, later) = rest.split_at_mut(piece.len().min(rest.len()));
            match self.load(piece) {
                Loaded::Word(word) => part.copy_from_slice(&word),
                Loaded::Byte(byte) => part.fill(byte),
            }
            rest = later;
        }
        Ok(())
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Cause> {
        let mut rest = bytes;
        for piece in self.pieces(offset, bytes.len() as u64)? {
            let (part, later) = rest.split_at(piece.len().min(rest.len()));
            self.store(piece, part);
            rest = later;
        }
        Ok(())
    }

    /// Sets `len` bytes from `offset` on to `value`.
    ///
    /// # Errors
    ///
    /// [`Cause::OutOfRange`] if there are not that many; nothing is written then.
    pub fn fill(&mut self, offset: u64, len: u64, value: u8) -> Result<(), Cause> {
        for piece in self.pieces(offset, len)? {
            let bytes = [value; WORD_LEN];
            self.store(piece, &bytes);
        }
        Ok(())
    }

    /// Compares the bytes from `offset` on with `bytes`: how far into them the first difference is.
    ///
    /// # Errors
    ///
    /// [`Cause::OutOfRange`] if there are fewer.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Result<Option<usize>, Cause> {
        let mut rest = bytes;
        for piece in self.pieces(offset, bytes.len() as u64)? {
            let (part, later) = rest.split_at(piece.len().min(rest.len()));
            let same = match self.load(piece) {
                Loaded::Word(word) => part.iter().zip(word).take_while(|(a, b)| **a == *b).count(),
                Loaded::Byte(byte) => part.iter().take_while(|other| **other == byte).count(),
            };
            if same < part.len() {
                return Ok(Some(bytes.len() - rest.len() + same));
            }
            rest = later;
        }
        Ok(None)
    }

    /// Whether the `len` bytes from `offset` on are all zero.
    ///
    /// # Errors
    ///
    /// [`Cause::OutOfRange`] if there are not that many.
    pub fn is_zero(&self, offset: u64, len: u64) -> Result<bool, Cause> {
        Ok(self
            .pieces(offset, len)?
            .all(|piece| match self.load(piece) {
                Loaded::Word(word) => word == [0; WORD_LEN],
                Loaded::Byte(byte) => byte == 0,
            }))
    }

    /// The range cut into aligned words, and single bytes before and behind them.
    fn pieces(&self, offset: u64, count: u64) -> Result<Pieces, Cause> {
        let out_of_range = Cause::OutOfRange {
            start: offset,
            count,
            capacity: self.len(),
        };
        let end = offset.checked_add(count).ok_or(out_of_range)?;
        if end > self.len() {
            return Err(out_of_range);
        }
        // Both fit, being no more than `self.len`.
        Ok(Pieces {
            base: self.start.as_ptr() as usize,
            left: offset as usize..end as usize,
        })
    }

    #[inline]
    fn load(&self, piece: Piece) -> Loaded {
        let at = self.start.as_ptr().wrapping_add(piece.offset());
        match piece {
            Piece::Word(_) => {
                // SAFETY: `pieces` made the piece: it lies inside the region, which is mapped by the contract of `new`,
                // and is aligned. Any bytes are a valid word. The device may write it at the same time, which is why the
                // access is volatile: memory that changes from outside the program is what those are for.
                let word = unsafe { at.cast::<u64>().read_volatile() };
                Loaded::Word(word.to_ne_bytes())
            }
            // SAFETY: as for a word.
            Piece::Byte(_) => Loaded::Byte(unsafe { at.read_volatile() }),
        }
    }

    /// Stores the beginning of `bytes`.
    #[inline]
    fn store(&mut self, piece: Piece, bytes: &[u8]) {
        let at = self.start.as_ptr().wrapping_add(piece.offset());
        match piece {
            Piece::Word(_) => {
                if let Some(word) = bytes.first_chunk() {
                    // SAFETY: as in `load`, and `&mut self` keeps others in this program away.
                    unsafe { at.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) }
                }
            }
            Piece::Byte(_) => {
                if let Some(byte) = bytes.first() {
                    // SAFETY: as for a word.
                    unsafe { at.write_volatile(*byte) }
                }
            }
        }
    }
}

/// Bytes that nobody else knows of, for tests and simulations.
impl From<&'static mut [u8]> for Region {
    fn from(bytes: &'static mut [u8]) -> Self {
        let len = bytes.len();
        // SAFETY: the slice is memory for ever, and was the only way to reach it.
        unsafe { Self::new(NonNull::from(bytes).cast(), len) }
    }
}

/// One access, by its offset.
#[derive(Clone, Copy)]
enum Piece {
    /// Of a whole word, whose address is aligned.
    Word(usize),
    Byte(usize),
}

impl Piece {
    fn offset(self) -> usize {
        let (Self::Word(offset) | Self::Byte(offset)) = self;
        offset
    }

    fn len(self) -> usize {
        match self {
            Self::Word(_) => WORD_LEN,
            Self::Byte(_) => 1,
        }
    }
}

enum Loaded {
    Word([u8; WORD_LEN]),
    Byte(u8),
}

/// Cuts what is left of a range that lies inside a region.
struct Pieces {
    base: usize,
    left: Range<usize>,
}

impl Iterator for Pieces {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        let offset = self.left.start;
        let left = self.left.end - offset;
        let piece = match left {
            0 => return None,
            WORD_LEN.. if (self.base + offset).is_multiple_of(WORD_LEN) => Piece::Word(offset),
            _ => Piece::Byte(offset),
        };
        self.left.start += piece.len();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec;
    use alloc::vec::Vec;

    fn region(len: usize) -> Region {
        Region::from(Box::leak(vec![0; len].into_boxed_slice()))
    }

    fn contents(region: &Region) -> Vec<u8> {
        let mut bytes = vec![0xaa; region.len() as usize];
        region.read(0, &mut bytes).expect("all of it");
        bytes
    }

    /// Every offset and length that meets an alignment in some way.
    #[test]
    fn work_on_a_region_equals_work_on_an_array() {
        const LEN: usize = 40;
        for base in 0..8 {
            let bytes = Box::leak(vec![0; LEN + base].into_boxed_slice());
            let mut region = Region::from(&mut bytes[base..]);
            let mut model = [0; LEN];
            let mut next = 0u8;
            for offset in 0..LEN {
                for len in 0..=LEN - offset {
                    let written: Vec<u8> = (0..len)
                        .map(|_| {
                            next = next.wrapping_mul(5).wrapping_add(1);
                            next
                        })
                        .collect();
                    model[offset..offset + len].copy_from_slice(&written);
                    region.write(offset as u64, &written).expect("inside");
                    assert_eq!(contents(&region), model);
                    let mut read = vec![0; len];
                    region.read(offset as u64, &mut read).expect("inside");
                    assert_eq!(read, written);
                    assert_eq!(region.first_difference(offset as u64, &read), Ok(None));
                    if let Some(middle) = read.get_mut(len / 2) {
                        *middle ^= 1;
                        let found = region.first_difference(offset as u64, &read);
                        assert_eq!(found, Ok(Some(len / 2)));
                    }
                    if len % 7 == 3 {
                        let (offset, len) = (offset as u64, len as u64);
                        region.fill(offset, len, 0).expect("inside");
                        assert_eq!(region.is_zero(offset, len), Ok(true));
                        model[offset as usize..][..len as usize].fill(0);
                        assert_eq!(contents(&region), model);
                    }
                }
            }
            assert_eq!(region.is_zero(0, LEN as u64), Ok(model == [0; LEN]));
        }
    }

    #[test]
    fn nothing_outside_is_touched() {
        let mut region = region(16);
        let cases = [
            (0, 17),
            (16, 1),
            (15, 2),
            (17, 0),
            (u64::MAX, 1),
            (u64::MAX, 17),
        ];
        for (start, count) in cases {
            let cause = Cause::OutOfRange {
                start,
                count,
                capacity: 16,
            };
            let mut bytes = vec![1; count as usize];
            assert_eq!(region.write(start, &bytes), Err(cause));
            assert_eq!(region.read(start, &mut bytes), Err(cause));
            assert_eq!(region.fill(start, count, 1), Err(cause));
            assert_eq!(region.is_zero(start, count), Err(cause));
            assert_eq!(region.first_difference(start, &bytes), Err(cause));
            assert_eq!(bytes, vec![1; count as usize]);
        }
        assert_eq!(region.is_zero(0, 16), Ok(true));
        region.write(16, &[]).expect("nothing at the very end");
        assert!(!region.is_empty());
    }
}
