//! [`Region`]: memory that belongs to a device and is mapped for the driver's side to read and write: a persistent
//! memory region, a shared-memory region.

use core::ptr::NonNull;

use crate::error::Cause;

/// The unit of access. An aligned word that lies inside what is written is written by one store, so that whoever looks at
/// the memory later, after whatever happened, finds all of it or nothing.
pub const WORD_LEN: usize = size_of::<u64>();

/// A run of memory that the device may look at and change at any time.
///
/// No reference to the bytes is ever given out. They are copied in and out by accesses that the compiler neither merges nor
/// splits, a word at a time where addresses allow, each inside the bounds. Writing takes `&mut`, so within the program nobody reads what is half
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
        for part in self.parts(offset, rest.len() as u64)? {
            let (bytes, later) = rest.split_at_mut(part.len.min(rest.len()));
            self.load(part, bytes);
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
        for part in self.parts(offset, bytes.len() as u64)? {
            let (bytes, later) = rest.split_at(part.len.min(rest.len()));
            self.store(part, bytes);
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
        let bytes = [value; PIECE_LEN];
        for piece in self.parts(offset, len)?.into_iter().flat_map(Part::pieces) {
            self.store(piece, bytes.get(..piece.len).unwrap_or_default());
        }
        Ok(())
    }

    /// Compares the bytes from `offset` on with `bytes`: how far into them the first difference is.
    ///
    /// # Errors
    ///
    /// [`Cause::OutOfRange`] if there are fewer.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Result<Option<usize>, Cause> {
        let mut piece_bytes = [0; PIECE_LEN];
        let mut rest = bytes;
        let parts = self.parts(offset, bytes.len() as u64)?;
        for piece in parts.into_iter().flat_map(Part::pieces) {
            let (expected, later) = rest.split_at(piece.len.min(rest.len()));
            let found = self.load_piece(piece, &mut piece_bytes);
            if found != expected {
                let same = found.iter().zip(expected).take_while(|(a, b)| a == b);
                return Ok(Some(bytes.len() - rest.len() + same.count()));
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
        let mut bytes = [0; PIECE_LEN];
        let mut pieces = self.parts(offset, len)?.into_iter().flat_map(Part::pieces);
        Ok(pieces.all(|piece| {
            self.load_piece(piece, &mut bytes)
                .iter()
                .all(|byte| *byte == 0)
        }))
    }

    /// The range as aligned words, and the bytes before and behind them.
    fn parts(&self, offset: u64, count: u64) -> Result<[Part; 3], Cause> {
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
        let (offset, count) = (offset as usize, count as usize);
        let unaligned = (self.start.as_ptr() as usize + offset) % WORD_LEN;
        let head = ((WORD_LEN - unaligned) % WORD_LEN).min(count);
        let words = (count - head) / WORD_LEN * WORD_LEN;
        let part = |offset, len, of| Part { offset, len, of };
        Ok([
            part(offset, head, Unit::Byte),
            part(offset + head, words, Unit::Word),
            part(offset + head + words, count - head - words, Unit::Byte),
        ])
    }

    /// Copies the part to `bytes`, which has its length.
    fn load(&self, part: Part, bytes: &mut [u8]) {
        let from = self.start.as_ptr().wrapping_add(part.offset);
        let len = part.len.min(bytes.len());
        // SAFETY: `parts` made the part: it lies inside the region, which is mapped by the contract of `new`, and its words
        // are aligned. `bytes` is at least as long as what is copied, and no other memory of this program is the region.
        unsafe {
            match part.of {
                Unit::Word => load_words(from.cast(), bytes.as_mut_ptr(), len / WORD_LEN),
                Unit::Byte => load_bytes(from, bytes.as_mut_ptr(), len),
            }
        }
    }

    /// Copies the piece to the beginning of `bytes`, which is returned.
    fn load_piece<'a>(&self, piece: Part, bytes: &'a mut [u8; PIECE_LEN]) -> &'a [u8] {
        let bytes = bytes.get_mut(..piece.len).unwrap_or_default();
        self.load(piece, bytes);
        bytes
    }

    /// Copies `bytes`, which has the length of the part, to it.
    fn store(&mut self, part: Part, bytes: &[u8]) {
        let to = self.start.as_ptr().wrapping_add(part.offset);
        let len = part.len.min(bytes.len());
        // SAFETY: as in `load`, and `&mut self` keeps others in this program away.
        unsafe {
            match part.of {
                Unit::Word => store_words(bytes.as_ptr(), to.cast(), len / WORD_LEN),
                Unit::Byte => store_bytes(bytes.as_ptr(), to, len),
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

/// What is compared or filled in one go.
const PIECE_LEN: usize = 256;

/// Bytes that are copied by accesses of one width. They lie inside the region.
#[derive(Clone, Copy)]
struct Part {
    offset: usize,
    len: usize,
    of: Unit,
}

#[derive(Clone, Copy)]
enum Unit {
    /// [`WORD_LEN`] bytes, of which the offset's address and the length are multiples.
    Word,
    Byte,
}

impl Part {
    /// The part cut into pieces of no more than [`PIECE_LEN`].
    fn pieces(self) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(PIECE_LEN).map(move |done| Self {
            offset: self.offset + done,
            len: (self.len - done).min(PIECE_LEN),
            of: self.of,
        })
    }
}

/// Copies aligned words out of a region.
///
/// # Safety
///
/// `from` is aligned and mapped for `words` words. The device may write them at the same time, which is why the accesses are
/// volatile or the processor's own: memory that changes from outside the program is what those are for. `to` can be written
/// for as many bytes, and the two don't overlap.
unsafe fn load_words(from: *const u64, to: *mut u8, words: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's promise.
    unsafe {
        copy_words(from.cast(), to, words);
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for index in 0..words {
        // SAFETY: the caller's promise.
        unsafe {
            let word = from.add(index).read_volatile();
            to.cast::<u64>().add(index).write_unaligned(word);
        }
    }
}

/// Copies aligned words into a region.
///
/// # Safety
///
/// As for [`load_words`], the other way round, and nobody else in this program may look at the region meanwhile.
unsafe fn store_words(from: *const u8, to: *mut u64, words: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's promise.
    unsafe {
        copy_words(from, to.cast(), words);
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for index in 0..words {
        // SAFETY: the caller's promise.
        unsafe {
            let word = from.cast::<u64>().add(index).read_unaligned();
            to.add(index).write_volatile(word);
        }
    }
}

/// One instruction, which moves a word at a time: an aligned one is loaded or stored whole.
///
/// # Safety
///
/// `from` and `to` are mapped for `words` words, and don't overlap.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_words(from: *const u8, to: *mut u8, words: usize) {
    // SAFETY: the caller's promise. The direction flag is clear between all instructions of Rust's.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies up to a word's bytes out of a region.
///
/// # Safety
///
/// As for [`load_words`]; nothing needs to be aligned.
unsafe fn load_bytes(from: *const u8, to: *mut u8, len: usize) {
    for index in 0..len {
        // SAFETY: the caller's promise.
        unsafe { to.add(index).write(from.add(index).read_volatile()) }
    }
}

/// Copies up to a word's bytes into a region.
///
/// # Safety
///
/// As for [`store_words`]; nothing needs to be aligned.
unsafe fn store_bytes(from: *const u8, to: *mut u8, len: usize) {
    for index in 0..len {
        // SAFETY: the caller's promise.
        unsafe { to.add(index).write_volatile(from.add(index).read()) }
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

    /// Longer than what is compared or filled in one go, and no multiple of it.
    #[test]
    fn long_ranges_are_done_to_their_end() {
        const LEN: usize = 3 * PIECE_LEN + 5;
        let mut region = region(LEN);
        region.fill(3, (LEN - 3) as u64, 7).expect("inside");
        let mut expected = vec![7; LEN];
        expected[..3].fill(0);
        assert_eq!(contents(&region), expected);
        for at in [3, PIECE_LEN + 1, 2 * PIECE_LEN + 3, LEN - 1] {
            let mut other = expected.clone();
            other[at] ^= 0x80;
            assert_eq!(region.first_difference(0, &other), Ok(Some(at)));
            region.fill(0, LEN as u64, 0).expect("inside");
            assert_eq!(region.is_zero(0, LEN as u64), Ok(true));
            region.write(at as u64, &[1]).expect("inside");
            assert_eq!(region.is_zero(0, LEN as u64), Ok(false));
            region.write(0, &expected).expect("inside");
            assert_eq!(region.first_difference(0, &expected), Ok(None));
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
