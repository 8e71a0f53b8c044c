//! [`Buffer`]: an owned run of bytes that can be lent to a device and comes back.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// An owned run of bytes for a device to read or write.
///
/// Made from a `Vec<u8>`, a `Box<[u8]>` or a `&'static mut [u8]` without a copy, and turned back the same way. A queue
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
    /// Nobody.
    Static,
}

// SAFETY: a `Buffer` owns its bytes as a `Vec<u8>` or `&'static mut [u8]` does, and both are `Send`.
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

    /// The bytes as a `Vec`, without a copy unless they were a static slice.
    pub fn into_vec(self) -> Vec<u8> {
        match self.origin {
            Origin::Vec { capacity } => {
                let this = ManuallyDrop::new(self);
                // SAFETY: `start`, `len` and `capacity` came from a `Vec<u8>` given up in `from`, or `len` was shortened
                // below the length it had then; ownership leaves `this`, which is not dropped.
                unsafe { Vec::from_raw_parts(this.start.as_ptr(), this.len, capacity) }
            }
            Origin::Static => self.to_vec(),
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
            origin: Origin::Static,
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
        if let Origin::Vec { capacity } = self.origin {
            // SAFETY: as in `into_vec`; length 0 because bytes need no drop.
            drop(unsafe { Vec::from_raw_parts(self.start.as_ptr(), 0, capacity) });
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
