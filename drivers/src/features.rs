//! Feature bits that concern the transport and the queues, for any device (spec 6), and their names.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// Device-independent feature bits (spec 6, "Reserved Feature Bits").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RingFeatures: u64 {
        /// Descriptors may point at tables of descriptors (spec 2.7.5.3).
        const INDIRECT_DESC = 1 << 28;
        /// Both sides say at which index they want to be notified (spec 2.7.10).
        const EVENT_IDX = 1 << 29;
        /// The device follows virtio 1.0 or later.
        const VERSION_1 = 1 << 32;
        /// The device reaches memory as the platform translates it (an IOMMU, bouncing).
        const ACCESS_PLATFORM = 1 << 33;
        /// The packed ring layout (spec 2.8).
        const RING_PACKED = 1 << 34;
        /// Buffers are used in the order they were made available.
        const IN_ORDER = 1 << 35;
        /// Memory accesses are ordered as the platform orders them for real devices.
        const ORDER_PLATFORM = 1 << 36;
        /// Single root I/O virtualization.
        const SR_IOV = 1 << 37;
        /// Notifications carry the ring position.
        const NOTIFICATION_DATA = 1 << 38;
        /// Notifications carry a value that the device chose.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// A single queue can be reset (spec 2.6.1).
        const RING_RESET = 1 << 40;
        /// The device has an administration virtqueue (spec 2.13).
        const ADMIN_VQ = 1 << 41;
    }
}

/// What the transports and queues of this crate implement, and so what [`crate::start::negotiate`] accepts for every
/// device.
///
/// - `INDIRECT_DESC`, `EVENT_IDX`: the queue.
/// - `VERSION_1`: always required; the legacy interface is not spoken.
/// - `ACCESS_PLATFORM`: every address given to a device comes from the [`DmaContext`](crate::DmaContext), which is told.
/// - `ORDER_PLATFORM`: queue and transport order their accesses to memory and registers as a real device needs it. Only
///   where the architecture's barriers are known: on x86, Arm and RISC-V.
pub const SUPPORTED: RingFeatures = RingFeatures::INDIRECT_DESC
    .union(RingFeatures::EVENT_IDX)
    .union(RingFeatures::VERSION_1)
    .union(RingFeatures::ACCESS_PLATFORM)
    .union(if crate::barrier::ORDERS_DEVICES {
        RingFeatures::ORDER_PLATFORM
    } else {
        RingFeatures::empty()
    });

/// What a device offered and what the driver accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Every bit the device offers.
    pub offered: u64,
    /// The bits both sides agreed on.
    pub accepted: u64,
}

impl Negotiated {
    /// Whether all of `bits` were agreed on.
    pub const fn has(&self, bits: u64) -> bool {
        self.accepted & bits == bits
    }

    /// The device-independent part of what was agreed on.
    pub const fn ring(&self) -> RingFeatures {
        RingFeatures::from_bits_truncate(self.accepted)
    }
}

/// Displays a set of feature bits by name, separated by spaces; a bit without a name is shown by its number.
#[derive(Clone, Copy)]
pub struct FeatureNames {
    bits: u64,
    device: &'static [(u64, &'static str)],
}

impl FeatureNames {
    /// Names for `bits` of a device whose own features are named by `device`, pairs of mask and name.
    pub const fn new(bits: u64, device: &'static [(u64, &'static str)]) -> Self {
        Self { bits, device }
    }

    /// Names for device-independent bits.
    pub const fn ring(bits: u64) -> Self {
        Self::new(bits, &[])
    }

    fn name(&self, bit: u64) -> Option<&'static str> {
        let own = self.device.iter().find(|(mask, _)| *mask == bit);
        own.map(|(_, name)| *name).or_else(|| {
            RingFeatures::from_bits(bit)
                .and_then(|feature| feature.iter_names().next())
                .map(|(name, _)| name)
        })
    }
}

impl fmt::Display for FeatureNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for number in 0..u64::BITS {
            let bit = 1 << number;
            if self.bits & bit == 0 {
                continue;
            }
            f.write_str(space)?;
            match self.name(bit) {
                Some(name) => f.write_str(name)?,
                None => write!(f, "bit{number}")?,
            }
            space = " ";
        }
        Ok(())
    }
}
