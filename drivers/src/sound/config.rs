//! What the device says about itself: its feature bits (spec 5.14.3) and its configuration (spec 5.14.4).

use bitflags::bitflags;

use crate::error::{Cause, Error, Result};
use crate::transport::{Fields, Transport};

bitflags! {
    /// The feature bits of a sound device that this driver implements: all that there are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// There are control elements.
        const CTLS = 1 << 0;
    }
}

/// Every feature bit of a sound device by name.
pub const FEATURE_NAMES: &[(u64, &str)] = &[(1 << 0, "CTLS")];

/// Offsets in `struct virtio_snd_config`. The device writes all of it.
mod offset {
    pub(super) const JACKS: usize = 0;
    pub(super) const STREAMS: usize = 4;
    pub(super) const CHMAPS: usize = 8;
    pub(super) const CONTROLS: usize = 12;
}

/// The most items of a kind that this driver believes in. The specification has no limit, but each costs memory that the
/// device would have us spend.
pub const MAX_ITEMS: u32 = 256;

/// How many items of each kind the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Jacks.
    pub jacks: u32,
    /// PCM streams.
    pub streams: u32,
    /// Channel maps.
    pub chmaps: u32,
    /// Control elements; 0 without the feature CTLS.
    pub controls: u32,
}

impl Config {
    /// Reads what `features`, those agreed on, say is there. After FEATURES_OK.
    pub(super) fn read<T: Transport>(transport: &T, features: Features) -> Result<Self> {
        let config = Fields::snapshot(transport, |fields| Self {
            jacks: fields.u32(offset::JACKS),
            streams: fields.u32(offset::STREAMS),
            chmaps: fields.u32(offset::CHMAPS),
            // It must not be read otherwise (spec 5.14.5.1).
            controls: match features.contains(Features::CTLS) {
                true => fields.u32(offset::CONTROLS),
                false => 0,
            },
        })?;
        let all = [
            ("jacks", config.jacks),
            ("streams", config.streams),
            ("chmaps", config.chmaps),
            ("controls", config.controls),
        ];
        for (field, value) in all {
            if value > MAX_ITEMS {
                let value = value.into();
                let cause = Cause::BadConfig { field, value };
                return Err(Error::new(transport.name(), cause));
            }
        }
        Ok(config)
    }
}
