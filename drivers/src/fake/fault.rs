//! [`Fault`]: the ways in which a device can lie.

/// What a hostile or broken device does. Set with [`FakeDevice::inject`](super::FakeDevice::inject).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    // For as long as it is set.
    /// FEATURES_OK does not stay set.
    FeaturesRefused,
    /// The status never reads 0 after a reset.
    ResetNeverEnds,
    /// The configuration generation is another at every read.
    ConfigNeverSettles,
    /// Requests are taken and never returned.
    Silent,
    /// Every register reads all ones, as after a hot-unplug.
    Gone,
    /// DEVICE_NEEDS_RESET is set from now on until a reset, and whenever the driver sets DRIVER_OK.
    NeedsReset,
    /// No MSI-X vector is accepted.
    VectorsRefused,
    /// The largest size of this queue reads so.
    QueueSize {
        /// Index of the queue.
        queue: u16,
        /// What is read.
        size: u16,
    },
    /// The notification offset of every queue reads so (PCI).
    NotifyOffset(u16),
    /// Before every completion the used ring, index included, is filled with noise from this seed.
    Noise(u64),

    // Once, with the next completion.
    /// It carries this id.
    UsedId(u32),
    /// It carries the id of a descriptor that no request in flight begins at.
    UsedIdNotInFlight,
    /// It comes twice.
    UsedTwice,
    /// It claims that so many bytes were written.
    UsedLength(u32),
    /// The used index jumps this far beyond what was returned.
    UsedIndexAhead(u16),
    /// The used index goes back this far instead.
    UsedIndexBack(u16),
}

impl Fault {
    /// Whether the fault goes with one completion and is over then.
    pub(super) const fn is_once(self) -> bool {
        matches!(
            self,
            Self::UsedId(_)
                | Self::UsedIdNotInFlight
                | Self::UsedTwice
                | Self::UsedLength(_)
                | Self::UsedIndexAhead(_)
                | Self::UsedIndexBack(_)
        )
    }
}
