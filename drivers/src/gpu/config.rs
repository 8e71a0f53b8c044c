//! What the device says about itself: its feature bits (spec 5.7.3) and its configuration (spec 5.7.4).

use bitflags::bitflags;

use super::wire::MAX_SCANOUTS;
use crate::error::{Cause, Error, Result};
use crate::transport::Transport;

bitflags! {
    /// The feature bits of a GPU that this driver implements.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The device gives what monitors say about themselves.
        const EDID = 1 << 1;
    }
}

/// Every feature bit of a GPU by name, implemented here or not.
pub const FEATURE_NAMES: &[(u64, &str)] = &[
    (1 << 0, "VIRGL"),
    (1 << 1, "EDID"),
    (1 << 2, "RESOURCE_UUID"),
    (1 << 3, "RESOURCE_BLOB"),
    (1 << 4, "CONTEXT_INIT"),
    (1 << 5, "BLOB_ALIGNMENT"),
];

/// Offsets in `struct virtio_gpu_config`. The device writes all but `events_clear`.
mod offset {
    pub(super) const EVENTS_READ: usize = 0;
    pub(super) const EVENTS_CLEAR: usize = 4;
    pub(super) const NUM_SCANOUTS: usize = 8;
}

/// The arrangement of displays has changed (VIRTIO_GPU_EVENT_DISPLAY).
const EVENT_DISPLAY: u32 = 1;

/// How many scanouts the device has.
pub(super) fn read_num_scanouts<T: Transport>(transport: &T) -> Result<u32> {
    let count = transport.config_u32(offset::NUM_SCANOUTS)?;
    if !(1..=MAX_SCANOUTS as u32).contains(&count) {
        let cause = Cause::BadConfig {
            field: "num_scanouts",
            value: count.into(),
        };
        return Err(Error::new(transport.name(), cause));
    }
    Ok(count)
}

/// Whether the arrangement of displays changed since the last call. Clears the event in the device, so that one which
/// comes later is seen as another.
pub(super) fn take_display_event<T: Transport>(transport: &mut T) -> Result<bool> {
    let events = transport.config_u32(offset::EVENTS_READ)?;
    if events & EVENT_DISPLAY == 0 {
        return Ok(false);
    }
    transport.write_config(offset::EVENTS_CLEAR, &EVENT_DISPLAY.to_le_bytes())?;
    Ok(true)
}
