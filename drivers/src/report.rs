//! What a driver tells about itself: for a shell, a status page, a test.

use alloc::vec::Vec;

use crate::device::DeviceName;
use crate::features::{FeatureNames, Negotiated};
use crate::queue::QueueStats;

/// A driver's account of its device at one moment. Every driver of this crate has a `report` method that makes one.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which device.
    pub device: DeviceName,
    /// The features offered and accepted.
    pub negotiated: Negotiated,
    /// Names of the device type's own feature bits, as mask and name.
    pub feature_names: &'static [(u64, &'static str)],
    /// Its queues.
    pub queues: Vec<QueueReport>,
    /// Configuration changes that the device announced.
    pub config_changes: u64,
    /// The device type's own counters, by name: bytes, errors, drops.
    pub counters: Vec<(&'static str, u64)>,
}

/// One queue's part of a [`Report`].
#[derive(Clone, Copy, Debug)]
pub struct QueueReport {
    /// What the device type calls it: "requestq", "receiveq1".
    pub name: &'static str,
    /// Its index on the device.
    pub index: u16,
    /// Its descriptors.
    pub size: u16,
    /// Requests in flight.
    pub in_flight: u16,
    /// What it did.
    pub stats: QueueStats,
}

impl Report {
    /// The features offered, to be displayed by name.
    pub fn offered(&self) -> FeatureNames {
        FeatureNames::new(self.negotiated.offered, self.feature_names)
    }

    /// The features accepted, to be displayed by name.
    pub fn accepted(&self) -> FeatureNames {
        FeatureNames::new(self.negotiated.accepted, self.feature_names)
    }
}
