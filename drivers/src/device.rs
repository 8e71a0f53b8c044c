//! Which device: its type by the specification's numbers (spec 5), and where it sits.

use core::fmt;

use virtio_drivers::transport::pci::bus::DeviceFunction;

/// A virtio device id (spec 5, "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// Network device (spec 5.1).
    pub const NET: Self = Self(1);
    /// Block device (spec 5.2).
    pub const BLK: Self = Self(2);
    /// GPU device (spec 5.7).
    pub const GPU: Self = Self(16);
    /// Sound device (spec 5.14).
    pub const SOUND: Self = Self(25);

    /// Entropy device (spec 5.4).
    pub const RNG: Self = Self(4);

    /// Persistent memory (spec 5.19).
    pub const PMEM: Self = Self(27);

    /// The name as in QEMU's `-device virtio-NAME-pci`, where the id is a known one.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "net",
            2 => "blk",
            3 => "console",
            4 => "rng",
            5 => "balloon",
            8 => "scsi",
            9 => "9p",
            16 => "gpu",
            18 => "input",
            19 => "vsock",
            20 => "crypto",
            23 => "iommu",
            24 => "mem",
            25 => "sound",
            26 => "fs",
            27 => "pmem",
            34 => "i2c",
            41 => "gpio",
            _ => return None,
        })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "virtio-{name}"),
            None => write!(f, "virtio device type {}", self.0),
        }
    }
}

/// Where a device sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// A PCI function.
    Pci(DeviceFunction),
    /// A block of MMIO registers at this physical address.
    Mmio(u64),
    /// A place that only the caller knows, numbered by it.
    Other(u64),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(function) => function.fmt(f),
            Self::Mmio(address) => write!(f, "mmio {address:#x}"),
            Self::Other(number) => write!(f, "device {number}"),
        }
    }
}

/// A device's type and place: what errors and logs call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// Its type.
    pub id: DeviceId,
    /// Its place.
    pub location: Location,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.id, self.location)
    }
}
