//! Which device: its type by the specification's numbers (spec 5), and where it sits.

use core::fmt;

use virtio_drivers::transport::pci::bus::DeviceFunction;

/// A virtio device id (spec 5, "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

macro_rules! device_ids {
    ($($(#[$doc:meta])* $constant:ident = $number:literal, $name:literal;)*) => {
        impl DeviceId {
            $($(#[$doc])* pub const $constant: Self = Self($number);)*

            /// A short name, where the id is one of the specification's: NAME in QEMU's `-device virtio-NAME-pci`, if it
            /// has the device.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

// The table at the beginning of the specification's chapter 5. Not every device in it is specified.
device_ids! {
    /// Network device (spec 5.1).
    NET = 1, "net";
    /// Block device (spec 5.2).
    BLK = 2, "blk";
    /// Console (spec 5.3).
    CONSOLE = 3, "console";
    /// Entropy device (spec 5.4).
    RNG = 4, "rng";
    /// Memory balloon, the traditional one (spec 5.5).
    BALLOON = 5, "balloon";
    /// ioMemory.
    IO_MEMORY = 6, "io-memory";
    /// Remote processor messaging.
    RPMSG = 7, "rpmsg";
    /// SCSI host (spec 5.6).
    SCSI = 8, "scsi";
    /// 9P transport: files of the host.
    NINE_P = 9, "9p";
    /// Wireless LAN (mac80211).
    WLAN = 10, "wlan";
    /// Serial line of a remote processor.
    RPROC_SERIAL = 11, "rproc-serial";
    /// CAIF: modems of ST-Ericsson.
    CAIF = 12, "caif";
    /// Memory balloon, the one that was to replace [`Self::BALLOON`].
    MEMORY_BALLOON = 13, "memory-balloon";
    /// GPU (spec 5.7).
    GPU = 16, "gpu";
    /// Real-time clock (spec 5.23).
    RTC = 17, "rtc";
    /// Input device: keyboard, pointer (spec 5.8).
    INPUT = 18, "input";
    /// Socket device (spec 5.10).
    VSOCK = 19, "vsock";
    /// Crypto device (spec 5.9).
    CRYPTO = 20, "crypto";
    /// Signal distribution module.
    SIGNAL = 21, "signal";
    /// Persistent store of a crashed kernel's last words.
    PSTORE = 22, "pstore";
    /// IOMMU (spec 5.13).
    IOMMU = 23, "iommu";
    /// Memory that comes and goes (spec 5.15).
    MEM = 24, "mem";
    /// Sound device (spec 5.14).
    SOUND = 25, "sound";
    /// File system: FUSE over virtio (spec 5.11).
    FS = 26, "fs";
    /// Persistent memory (spec 5.19).
    PMEM = 27, "pmem";
    /// Replay protected memory block (spec 5.12).
    RPMB = 28, "rpmb";
    /// Simulated wireless LAN (mac80211 hwsim).
    HWSIM = 29, "hwsim";
    /// Video encoder.
    VIDEO_ENCODER = 30, "video-encoder";
    /// Video decoder.
    VIDEO_DECODER = 31, "video-decoder";
    /// System control and management interface (spec 5.17).
    SCMI = 32, "scmi";
    /// Nitro secure module.
    NSM = 33, "nsm";
    /// I2C adapter (spec 5.16).
    I2C = 34, "i2c";
    /// Watchdog.
    WATCHDOG = 35, "watchdog";
    /// CAN controller (spec 5.20).
    CAN = 36, "can";
    /// Parameter server.
    PARAMETER_SERVER = 38, "parameter-server";
    /// Audio policy device.
    AUDIO_POLICY = 39, "audio-policy";
    /// Bluetooth.
    BLUETOOTH = 40, "bluetooth";
    /// GPIO (spec 5.18).
    GPIO = 41, "gpio";
    /// RDMA.
    RDMA = 42, "rdma";
    /// Camera.
    CAMERA = 43, "camera";
    /// Shared memory of virtual machines (ISM).
    ISM = 44, "ism";
    /// SPI controller (spec 5.21).
    SPI = 45, "spi";
    /// Trusted execution environment.
    TEE = 46, "tee";
    /// CPU balloon.
    CPU_BALLOON = 47, "cpu-balloon";
    /// Media device (spec 5.22).
    MEDIA = 48, "media";
    /// USB controller.
    USB = 49, "usb";
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
