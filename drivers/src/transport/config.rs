//! The device configuration: [`Fields`] for drivers, and for transports accesses in the widths that the specification wants of
//! a register-based transport (4.1.3.1, 4.2.2.2): a field of 8, 16 or 32 bits in one access, one of 64 bits in two of 32.

use core::cell::Cell;

use super::Transport;
use crate::error::{Cause, Error, Result};
use crate::registers::Registers;

/// Checks that `len` bytes at `offset` are there, and that a field of that length may be there.
fn check<R: Registers>(config: &R, offset: usize, len: usize) -> Result<(), Cause> {
    let end = offset.checked_add(len);
    if end.is_none_or(|end| end > config.len()) {
        return Err(Cause::ConfigOutOfRange { offset, len });
    }
    let unit = match len {
        2 => 2,
        4 | 8 => 4,
        _ => 1,
    };
    if !offset.is_multiple_of(unit) {
        let (value, unit) = (offset as u64, unit as u64);
        return Err(Cause::Misaligned { value, unit });
    }
    Ok(())
}

/// See [`Transport::read_config`].
pub(super) fn read<R: Registers>(config: &R, offset: usize, bytes: &mut [u8]) -> Result<(), Cause> {
    check(config, offset, bytes.len())?;
    match bytes.len() {
        2 => bytes.copy_from_slice(&config.read_u16(offset).to_le_bytes()),
        4 | 8 => {
            for (index, word) in bytes.chunks_exact_mut(4).enumerate() {
                word.copy_from_slice(&config.read_u32(offset + index * 4).to_le_bytes());
            }
        }
        _ => {
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = config.read_u8(offset + index);
            }
        }
    }
    Ok(())
}

/// See [`Transport::write_config`].
pub(super) fn write<R: Registers>(config: &R, offset: usize, bytes: &[u8]) -> Result<(), Cause> {
    check(config, offset, bytes.len())?;
    match *bytes {
        [a, b] => config.write_u16(offset, u16::from_le_bytes([a, b])),
        [a, b, c, d] => config.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => {
            config.write_u64(offset, u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        }
        _ => {
            for (index, byte) in bytes.iter().enumerate() {
                config.write_u8(offset + index, *byte);
            }
        }
    }
    Ok(())
}

/// The fields of a device configuration, for a driver that reads many: one that can't be read is 0, and so are those after it.
/// The failure comes out once, at the end: to check each field made `blk` 2.4 KB larger.
pub(crate) struct Fields<'a, T: Transport> {
    transport: &'a T,
    failure: Cell<Option<Error>>,
}

impl<T: Transport> Fields<'_, T> {
    /// What `read` makes of the fields, so that they belong together ([`Transport::config_snapshot`]).
    ///
    /// # Errors
    ///
    /// As there, and those of [`Transport::read_config`].
    pub(crate) fn snapshot<V>(transport: &T, read: impl Fn(&Fields<'_, T>) -> V) -> Result<V> {
        transport.config_snapshot(|transport| {
            let failure = Cell::new(None);
            let fields = Fields { transport, failure };
            let value = read(&fields);
            fields.failure.get().map_or(Ok(value), Err)
        })
    }

    /// As many bytes as asked for, as they are.
    pub(crate) fn bytes<const LEN: usize>(&self, offset: usize) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        self.fill(offset, &mut bytes);
        bytes
    }

    fn fill(&self, offset: usize, bytes: &mut [u8]) {
        if self.failure.get().is_none() {
            self.failure
                .set(self.transport.read_config(offset, bytes).err());
        }
    }

    /// A byte.
    pub(crate) fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.bytes(offset))
    }

    /// Two bytes.
    pub(crate) fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    /// Four bytes.
    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    /// Eight bytes, of which the device may change one half after the other was read, if the generation does not tell.
    pub(crate) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
}
