//! Where the region is (spec 5.19.4, 5.19.5).

use super::wire::Features;
use crate::error::{Cause, Error, Result};
use crate::transport::{Fields, Transport};

/// Offsets in `struct virtio_pmem_config`, all written by the device.
mod field {
    pub(super) const START: usize = 0;
    pub(super) const SIZE: usize = 8;
}

/// The id of the shared-memory region that is the persistent memory (spec 5.19.5.1).
pub(super) const SHARED_MEMORY_ID: u8 = 0;

/// Where the persistent memory is. The platform maps it, as memory (write-back cached), and makes a
/// [`Region`](crate::region::Region) of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Physical address of the first byte.
    pub start: u64,
    /// Length in bytes, at least 1; `start + size` does not overflow.
    pub size: u64,
}

impl Config {
    /// Reads where the region is, in the way that `features`, those agreed on, say. After FEATURES_OK.
    pub(super) fn read<T: Transport>(transport: &T, features: Features) -> Result<Self> {
        let config = match features.contains(Features::SHMEM_REGION) {
            true => Self::of_shared_memory(transport)?,
            false => Fields::snapshot(transport, |fields| Self {
                start: fields.u64(field::START),
                size: fields.u64(field::SIZE),
            })?,
        };
        config
            .check()
            .map_err(|cause| Error::new(transport.name(), cause))?;
        Ok(config)
    }

    fn of_shared_memory<T: Transport>(transport: &T) -> Result<Self> {
        let missing = Cause::MissingCapability("shared memory");
        let region = transport.shared_memory(SHARED_MEMORY_ID);
        let region = region.ok_or(Error::new(transport.name(), missing))?;
        Ok(Self {
            start: region.address,
            size: region.len,
        })
    }

    fn check(&self) -> Result<(), Cause> {
        let bad = |field, value| Err(Cause::BadConfig { field, value });
        if self.size == 0 {
            return bad("size", 0);
        }
        if self.start.checked_add(self.size).is_none() {
            return bad("start", self.start);
        }
        Ok(())
    }
}
