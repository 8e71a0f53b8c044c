//! Reading what the firmware left in physical memory.

use zerocopy::FromBytes;

/// Physical memory, as far as it can be read.
pub trait PhysicalMemory {
    /// The bytes at a physical address, or `None` where they can't be read.
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]>;

    /// A copy of the `T` at a physical address of any alignment.
    fn read<T: FromBytes>(&self, address: u64) -> Option<T> {
        T::read_from_bytes(self.bytes(address, size_of::<T>() as u64)?).ok()
    }

    /// Copies of the `count` entries of a table at a physical address of any alignment. A table
    /// without entries may be anywhere.
    fn table<T: FromBytes>(&self, address: u64, count: u32) -> Option<impl Iterator<Item = T>> {
        let length = u64::from(count).checked_mul(size_of::<T>() as u64)?;
        let bytes = match length {
            0 => &[],
            _ => self.bytes(address, length)?,
        };
        let entries = bytes.chunks_exact(size_of::<T>());
        // Every chunk has the right size, so none is left out.
        Some(entries.filter_map(|entry| T::read_from_bytes(entry).ok()))
    }
}

/// Physical memory for tests: one run of bytes at some address, nothing elsewhere.
#[cfg(test)]
pub(crate) struct Fake {
    /// Where the bytes are.
    pub(crate) base: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

#[cfg(test)]
impl PhysicalMemory for Fake {
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.bytes.get(start..end)
    }
}
