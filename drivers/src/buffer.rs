//! [`Buffer`]: an owned run of bytes that can be lent to a device and comes back.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::{NonNull, without_provenance_mut};

/// An owned run of bytes for a device to read or write.
///
/// Made from a `Vec<u8>`, a `Box<[u8]>` or a `&'static mut [u8]` without a copy, and turned back the same way; or from
/// memory of any other kind, such as a page frame or a buffer of a pool, by [`Buffer::from_raw`]. A queue
/// takes the buffer by value and hands it back with the completion, so nothing else can touch the bytes while the
/// device may: a buffer on a stack frame that returns early is not expressible.
///
/// It keeps a raw pointer, not a `Box`, because a `Box` asserts that nothing else accesses its memory, which is untrue
/// while a device does.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    origin: Origin,
}

/// Who frees the memory.
#[derive(Clone, Copy)]
enum Origin {
    /// The global allocator, by way of a `Vec<u8>` of this capacity.
    Vec { capacity: usize },
    /// A function of the maker's.
    Raw { release: Release, context: *mut () },
}

/// Takes the memory of a [`Buffer`] back: called with the `start` and the `context` that [`Buffer::from_raw`] was given.
pub type Release = unsafe fn(start: NonNull<u8>, context: *mut ());

/// For bytes that nobody frees.
fn keep(_: NonNull<u8>, _: *mut ()) {}

/// For those of [`Buffer::aligned`], whose capacity the context is, with the exponent of the alignment in its lowest bits.
///
/// # Safety
///
/// The bytes were allocated with that layout, and are not used any more.
unsafe fn free_aligned(start: NonNull<u8>, context: *mut ()) {
    let exponent = context.addr() % Buffer::MIN_ALIGN;
    let capacity = context.addr() - exponent;
    // SAFETY: as the caller promises.
    unsafe {
        let layout = Layout::from_size_align_unchecked(capacity, 1 << exponent);
        dealloc(start.as_ptr(), layout);
    }
}

// SAFETY: a `Buffer` owns its bytes as a `Vec<u8>` or `&'static mut [u8]` does, and both are `Send`; for other memory, and
// for the function that takes it back, the caller of `from_raw` promised as much.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` only gives `&[u8]`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `len` zero bytes; `None` when memory is short.
    pub fn zeroed(len: usize) -> Option<Self> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        bytes.resize(len, 0);
        Some(Self::from(bytes))
    }

    /// A buffer of `len` zero bytes that begins at a multiple of `align`, a power of two: for a disk, whose device may pass it
    /// on to a file that takes nothing else (O_DIRECT). `None` when memory is short, or `align` is no power of two.
    ///
    /// ```
    /// # use vringlet::Buffer;
    /// let block = Buffer::aligned(4096, 512).expect("memory");
    /// assert!(block.as_ptr().addr() % 512 == 0 && block.iter().all(|byte| *byte == 0));
    /// ```
    pub fn aligned(len: usize, align: usize) -> Option<Self> {
        if !align.is_power_of_two() {
            return None;
        }
        let align = align.max(Self::MIN_ALIGN);
        let capacity = len.max(1).checked_next_multiple_of(align)?;
        let layout = Layout::from_size_align(capacity, align).ok()?;
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let context = without_provenance_mut(capacity | align.ilog2() as usize);
        // SAFETY: the bytes were just allocated, so they are nobody else's, and are zero; `free_aligned` gives them back, of
        // any thread, and is told of the layout that they have.
        Some(unsafe { Self::from_raw(start, len, free_aligned, context) })
    }

    /// The capacity of an aligned buffer is a multiple of this, which is more than the exponent of any alignment.
    const MIN_ALIGN: usize = 64;

    /// A buffer of the `len` bytes at `start`, whatever they are part of: page frames, a pool, memory that a device can reach
    /// without bouncing. When the buffer is dropped, `release` is called with `start` and `context`, which may be a pointer
    /// or, as [`core::ptr::without_provenance_mut`] makes one, a number; it may be dropped inside a driver that is locked,
    /// so `release` must not call one.
    ///
    /// ```
    /// use core::ptr::{NonNull, without_provenance_mut};
    /// use vringlet::Buffer;
    ///
    /// # fn frames_alloc(frames: usize) -> NonNull<u8> {
    /// #     NonNull::new(vec![0; frames * 4096].leak().as_mut_ptr()).expect("memory")
    /// # }
    /// # fn frames_free(start: NonNull<u8>, frames: usize) {
    /// #     drop(unsafe { Vec::from_raw_parts(start.as_ptr(), 0, frames * 4096) });
    /// # }
    /// // A kernel's page frames: the context is how many they are.
    /// fn release(start: NonNull<u8>, frames: *mut ()) {
    ///     frames_free(start, frames.addr());
    /// }
    /// let start = frames_alloc(2);
    /// // SAFETY: the frames are zeroed, mapped, nobody else's, and can be freed once and anywhere.
    /// let buffer = unsafe { Buffer::from_raw(start, 2 * 4096, release, without_provenance_mut(2)) };
    /// assert_eq!(buffer.len(), 8192);
    /// ```
    ///
    /// # Safety
    ///
    /// From now on until `release` is called, and for ever if it is not, since a queue whose device could not be stopped
    /// leaks its buffers:
    ///
    /// - the bytes are initialised, stay where they are, and can be read and written from any thread; `len` is at most
    ///   `isize::MAX`;
    /// - nothing else accesses them, but for the device that the buffer is lent to.
    ///
    /// `release` may be called with these arguments once, at any time and on any thread.
    pub const unsafe fn from_raw(
        start: NonNull<u8>,
        len: usize,
        release: Release,
        context: *mut (),
    ) -> Self {
        Self {
            start,
            len,
            origin: Origin::Raw { release, context },
        }
    }

    /// The bytes as a `Vec`: without a copy if they were one or a `Box`; others are copied and given back.
    pub fn into_vec(self) -> Vec<u8> {
        match self.origin {
            Origin::Vec { capacity } => {
                let this = ManuallyDrop::new(self);
                // SAFETY: `start`, `len` and `capacity` came from a `Vec<u8>` given up in `from`, or `len` was shortened
                // below the length it had then; ownership leaves `this`, which is not dropped.
                unsafe { Vec::from_raw_parts(this.start.as_ptr(), this.len, capacity) }
            }
            Origin::Raw { .. } => self.to_vec(),
        }
    }

    /// Shortens the buffer to `len` bytes; does nothing if it is no longer than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Where the bytes are, for handing to the platform. No access is made.
    pub(crate) fn as_raw(&self) -> NonNull<[u8]> {
        NonNull::slice_from_raw_parts(self.start, self.len)
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        let mut bytes = ManuallyDrop::new(bytes);
        // The pointer of a `Vec` is never null, dangling but aligned when empty.
        let start = NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Self {
            start,
            len: bytes.len(),
            origin: Origin::Vec {
                capacity: bytes.capacity(),
            },
        }
    }
}

impl From<Box<[u8]>> for Buffer {
    fn from(bytes: Box<[u8]>) -> Self {
        Self::from(bytes.into_vec())
    }
}

impl From<&'static mut [u8]> for Buffer {
    fn from(bytes: &'static mut [u8]) -> Self {
        Self {
            len: bytes.len(),
            start: NonNull::from(bytes).cast(),
            origin: Origin::Raw {
                release: keep,
                context: core::ptr::null_mut(),
            },
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer owns `len` initialised bytes from `start`; a queue that lends them to a device holds the
        // `Buffer` itself until the device is done, so whoever has `&self` has the bytes alone.
        unsafe { self.as_raw().as_ref() }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` is unique.
        unsafe { self.as_raw().as_mut() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.origin {
            // SAFETY: as in `into_vec`; length 0 because bytes need no drop.
            Origin::Vec { capacity } => unsafe {
                drop(Vec::from_raw_parts(self.start.as_ptr(), 0, capacity));
            },
            // SAFETY: the caller of `from_raw` promised that this may be done once, and a value is dropped at most once. No
            // reference to the bytes is left, for each borrows the buffer. (`keep` may be called at any time.)
            Origin::Raw { release, context } => unsafe { release(self.start, context) },
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_vec_goes_in_and_comes_out_without_a_copy() {
        let mut bytes = Vec::with_capacity(100);
        bytes.extend_from_slice(b"abc");
        let address = bytes.as_ptr();
        let mut buffer = Buffer::from(bytes);
        buffer[1] = b'x';
        let bytes = buffer.into_vec();
        assert_eq!(bytes, b"axc");
        assert_eq!((bytes.as_ptr(), bytes.capacity()), (address, 100));
    }

    #[test]
    fn a_static_slice_is_used_in_place() {
        let bytes: &'static mut [u8] = Box::leak(vec![1u8, 2, 3].into_boxed_slice());
        let address = bytes.as_ptr();
        let buffer = Buffer::from(bytes);
        assert_eq!((&*buffer, buffer.as_ptr()), (&[1u8, 2, 3][..], address));
        assert_eq!(buffer.into_vec(), [1, 2, 3]);
    }

    /// What became of memory that was made a buffer by [`raw`].
    struct Lender {
        start: NonNull<u8>,
        /// How often it was given back.
        released: &'static AtomicUsize,
    }

    impl Lender {
        fn new(bytes: &[u8]) -> Self {
            let start = NonNull::from(Box::leak(Box::<[u8]>::from(bytes))).cast();
            let released = Box::leak(Box::default());
            Self { start, released }
        }

        fn buffer(&self, len: usize) -> Buffer {
            unsafe fn release(start: NonNull<u8>, context: *mut ()) {
                // SAFETY: it points to the counter of a `Lender`, and those are leaked.
                unsafe { &*context.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
                // SAFETY: leaked, and no buffer's any more.
                unsafe { start.write(0xee) };
            }
            let context = core::ptr::from_ref(self.released).cast_mut().cast();
            // SAFETY: the bytes are leaked, and each test makes one buffer of them at a time.
            unsafe { Buffer::from_raw(self.start, len, release, context) }
        }

        /// How often they were given back, and the first of them.
        fn seen(&self) -> (usize, u8) {
            // SAFETY: leaked, and the tests ask only when there is no buffer.
            (self.released.load(Ordering::Relaxed), unsafe {
                self.start.read()
            })
        }
    }

    #[test]
    fn memory_of_any_kind_is_used_in_place_and_given_back_once() {
        let lender = Lender::new(b"abcd");
        let mut buffer = lender.buffer(4);
        assert_eq!(buffer.as_ptr(), lender.start.as_ptr().cast_const());
        buffer[0] = b'x';
        let mut moved = core::hint::black_box(buffer);
        moved.truncate(2);
        assert_eq!(*moved, *b"xb");
        drop(moved);
        assert_eq!(lender.seen(), (1, 0xee));
    }

    #[test]
    fn other_memory_becomes_a_vec_by_a_copy_and_is_given_back() {
        let lender = Lender::new(b"abcd");
        let bytes = lender.buffer(4).into_vec();
        assert_eq!(lender.seen(), (1, 0xee));
        assert_eq!(bytes, b"abcd");
        assert_ne!(bytes.as_ptr(), lender.start.as_ptr().cast_const());
        drop(bytes);
        assert_eq!(lender.seen(), (1, 0xee));
    }

    #[test]
    fn an_aligned_buffer_is_aligned_and_zero() {
        for (len, align) in [
            (0, 1),
            (1, 512),
            (513, 512),
            (100, 4096),
            (65536, 4096),
            (7, 1 << 20),
        ] {
            let mut buffer = Buffer::aligned(len, align).expect("memory");
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % align), (len, 0));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert_eq!(buffer.into_vec(), vec![7; len]);
        }
        for (len, align) in [
            (1, 3),
            (1, 513),
            (usize::MAX, 512),
            (isize::MAX as usize, 2),
        ] {
            assert!(Buffer::aligned(len, align).is_none(), "{len} {align}");
        }
    }

    #[test]
    fn a_buffer_is_four_words() {
        // Every request moves some.
        assert_eq!(size_of::<Buffer>(), 4 * size_of::<usize>());
    }

    #[test]
    fn empty_and_shortened_buffers_are_sound() {
        let empty = Buffer::from(Vec::new());
        assert!(empty.is_empty());
        let mut buffer = Buffer::zeroed(8).expect("eight bytes");
        buffer.truncate(20);
        assert_eq!(buffer.len(), 8);
        buffer.truncate(3);
        assert_eq!(buffer.into_vec(), [0, 0, 0]);
    }
}
