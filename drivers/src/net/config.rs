//! What the device says about itself: its feature bits (spec 5.1.3) and its configuration (spec 5.1.4).

use core::fmt;

use bitflags::bitflags;

use crate::device::Location;
use crate::error::{Cause, Error, Result};
use crate::features::{FeatureNames, Negotiated};
use crate::transport::{Fields, Transport};

bitflags! {
    /// The feature bits of a network device that this driver implements (spec 5.1.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The device finishes checksums of TCP and UDP that the driver began.
        const CSUM = 1 << 0;
        /// The driver takes frames whose checksum is unfinished, or was verified by the device.
        const GUEST_CSUM = 1 << 1;
        /// What the device may leave to the driver can be changed.
        const CTRL_GUEST_OFFLOADS = 1 << 2;
        /// The device says how large packets may be.
        const MTU = 1 << 3;
        /// The device has a MAC address for its driver.
        const MAC = 1 << 5;
        /// A received frame may stand for several segments of TCP over IPv4.
        const GUEST_TSO4 = 1 << 7;
        /// A received frame may stand for several segments of TCP over IPv6.
        const GUEST_TSO6 = 1 << 8;
        /// The device cuts frames that stand for several segments of TCP over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// The device cuts frames that stand for several segments of TCP over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// A received packet may be spread over several buffers.
        const MRG_RXBUF = 1 << 15;
        /// The device says whether its link is up.
        const STATUS = 1 << 16;
        /// There is a control queue.
        const CTRL_VQ = 1 << 17;
        /// Promiscuous and all-multicast mode, and the MAC filter tables.
        const CTRL_RX = 1 << 18;
        /// The VLAN filter.
        const CTRL_VLAN = 1 << 19;
        /// More receive modes.
        const CTRL_RX_EXTRA = 1 << 20;
        /// The device can ask its driver to announce itself on the network.
        const GUEST_ANNOUNCE = 1 << 21;
        /// The MAC address can be set.
        const CTRL_MAC_ADDR = 1 << 23;
        /// The device cuts frames that stand for several UDP datagrams.
        const HOST_USO = 1 << 56;
        /// The driver says exactly how long the headers are that each segment gets.
        const GUEST_HDRLEN = 1 << 59;
        /// The device says how fast its link is.
        const SPEED_DUPLEX = 1 << 63;
    }
}

impl Features {
    /// Those that need the control queue (spec 5.1.3.1).
    const OF_CONTROL_QUEUE: Self = Self::CTRL_RX
        .union(Self::CTRL_VLAN)
        .union(Self::CTRL_RX_EXTRA)
        .union(Self::GUEST_ANNOUNCE)
        .union(Self::CTRL_MAC_ADDR)
        .union(Self::CTRL_GUEST_OFFLOADS);

    /// Received frames may stand for several segments.
    pub(super) const LARGE_RECEIVE: Self = Self::GUEST_TSO4.union(Self::GUEST_TSO6);
    /// Frames that are sent may.
    pub(super) const LARGE_TRANSMIT: Self =
        Self::HOST_TSO4.union(Self::HOST_TSO6).union(Self::HOST_USO);
    /// What `CTRL_GUEST_OFFLOADS` can turn on and off, by the same bits (spec 5.1.6.5.6.1).
    pub(super) const GUEST_OFFLOADS: Self = Self::GUEST_CSUM.union(Self::LARGE_RECEIVE);

    /// What can't be accepted, if `available` is all there is, because of what is missing there.
    pub(super) const fn unusable_with(available: Self) -> Self {
        let mut unusable = Self::empty();
        if !available.contains(Self::CTRL_VQ) {
            unusable = unusable.union(Self::OF_CONTROL_QUEUE);
        }
        if !available.contains(Self::STATUS) {
            // The wish to be announced is a bit of the status field.
            unusable = unusable.union(Self::GUEST_ANNOUNCE);
        }
        if !available.contains(Self::CSUM) {
            unusable = unusable.union(Self::LARGE_TRANSMIT);
        }
        if !available.contains(Self::GUEST_CSUM) {
            unusable = unusable.union(Self::LARGE_RECEIVE);
        }
        unusable
    }
}

/// Every feature bit of a network device by name (spec 5.1.3), implemented here or not.
pub const FEATURE_NAMES: &[(u64, &str)] = &[
    (1 << 0, "CSUM"),
    (1 << 1, "GUEST_CSUM"),
    (1 << 2, "CTRL_GUEST_OFFLOADS"),
    (1 << 3, "MTU"),
    (1 << 5, "MAC"),
    (1 << 6, "GSO"),
    (1 << 7, "GUEST_TSO4"),
    (1 << 8, "GUEST_TSO6"),
    (1 << 9, "GUEST_ECN"),
    (1 << 10, "GUEST_UFO"),
    (1 << 11, "HOST_TSO4"),
    (1 << 12, "HOST_TSO6"),
    (1 << 13, "HOST_ECN"),
    (1 << 14, "HOST_UFO"),
    (1 << 15, "MRG_RXBUF"),
    (1 << 16, "STATUS"),
    (1 << 17, "CTRL_VQ"),
    (1 << 18, "CTRL_RX"),
    (1 << 19, "CTRL_VLAN"),
    (1 << 20, "CTRL_RX_EXTRA"),
    (1 << 21, "GUEST_ANNOUNCE"),
    (1 << 22, "MQ"),
    (1 << 23, "CTRL_MAC_ADDR"),
    (1 << 50, "DEVICE_STATS"),
    (1 << 51, "HASH_TUNNEL"),
    (1 << 52, "VQ_NOTF_COAL"),
    (1 << 53, "NOTF_COAL"),
    (1 << 54, "GUEST_USO4"),
    (1 << 55, "GUEST_USO6"),
    (1 << 56, "HOST_USO"),
    (1 << 57, "HASH_REPORT"),
    (1 << 59, "GUEST_HDRLEN"),
    (1 << 60, "RSS"),
    (1 << 61, "RSC_EXT"),
    (1 << 62, "STANDBY"),
    (1 << 63, "SPEED_DUPLEX"),
];

/// Displays feature bits of a network device by name.
pub const fn feature_names(bits: u64) -> FeatureNames {
    FeatureNames::new(bits, FEATURE_NAMES)
}

/// Offsets in `struct virtio_net_config` (spec 5.1.4). The device writes all of it.
mod offset {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MTU: usize = 10;
    pub(super) const SPEED: usize = 12;
    pub(super) const DUPLEX: usize = 16;
}

/// Bits of the field `status`.
const S_LINK_UP: u16 = 1;
const S_ANNOUNCE: u16 = 2;

/// The MTU of a device that says nothing about it (spec 5.1.6.3: frames of 1514 bytes).
const DEFAULT_MTU: u16 = 1500;
/// The smallest MTU that a device may name (spec 5.1.4.1).
const MIN_MTU: u16 = 68;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether it names one station: neither multicast nor all zeros.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }

    /// Whether it names a group, broadcast among them.
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }

    /// A locally administered address for a device that has none: always the same at the same place.
    fn made_up(location: Location) -> Self {
        let place = match location {
            Location::Pci(function) => {
                u32::from_le_bytes([function.bus, function.device, function.function, 1])
            }
            Location::PciSegment(segment, function) => {
                let [low, high] = segment.to_le_bytes();
                let slot = function.device << 3 | function.function;
                u32::from_le_bytes([function.bus, slot, low, high.wrapping_add(2)])
            }
            // Register blocks are at least a few hundred bytes apart.
            Location::Mmio(address) => (address >> 8) as u32,
            Location::Other(number) => number as u32,
        };
        let [a, b, c, d] = place.to_le_bytes();
        Self([0x02, 0x56, d, c, b, a])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The state of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether frames go through. A device that doesn't say so is taken to be up (spec 5.1.4.2).
    pub up: bool,
    /// Mbit/s, if known.
    pub speed: Option<u32>,
    /// Whether both directions work at the same time, if known.
    pub full_duplex: Option<bool>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.up { "link up" } else { "link down" })?;
        if let Some(speed) = self.speed {
            write!(f, " {speed} Mbit/s")?;
        }
        match self.full_duplex {
            Some(true) => f.write_str(" full duplex"),
            Some(false) => f.write_str(" half duplex"),
            None => Ok(()),
        }
    }
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The device's own address; also after it was set ([`Command::MacAddress`](super::Command::MacAddress)).
    pub mac: MacAddress,
    /// The largest IP packet that the device takes.
    pub mtu: u16,
    /// The state of the link, as the device last said.
    pub link: Link,
    /// How often it was found that the device wants its driver to announce itself (spec 5.1.6.5.4).
    pub(super) announcements: u64,
}

impl Config {
    /// Reads and validates. `fallback` is the address of a device that has none.
    pub(super) fn read<T: Transport>(
        transport: &T,
        negotiated: Negotiated,
        fallback: Option<MacAddress>,
    ) -> Result<Self> {
        let bad = |field, value| Error::new(transport.name(), Cause::BadConfig { field, value });
        let mut mac = fallback.unwrap_or(MacAddress::made_up(transport.name().location));
        if negotiated.has(Features::MAC.bits()) {
            mac = Fields::snapshot(transport, |fields| MacAddress(fields.bytes(offset::MAC)))?;
        }
        if !mac.is_unicast() {
            let [a, b, c, d, e, f] = mac.0;
            return Err(bad("mac", u64::from_be_bytes([0, 0, a, b, c, d, e, f])));
        }
        let mut mtu = DEFAULT_MTU;
        if negotiated.has(Features::MTU.bits()) {
            mtu = transport.config_u16(offset::MTU)?;
            if mtu < MIN_MTU {
                return Err(bad("mtu", mtu.into()));
            }
        }
        let live = Live::read(transport, negotiated)?;
        Ok(Self {
            mac,
            mtu,
            link: live.link,
            announcements: live.announce.into(),
        })
    }

    /// Reads anew what may change. Says whether anything is different or there is something to be done.
    pub(super) fn update<T: Transport>(
        &mut self,
        transport: &T,
        negotiated: Negotiated,
    ) -> Result<bool> {
        let live = Live::read(transport, negotiated)?;
        let changed = live.link != self.link || live.announce;
        self.link = live.link;
        self.announcements += u64::from(live.announce);
        Ok(changed)
    }
}

/// What may change at any time.
struct Live {
    link: Link,
    /// The device wants its driver to announce itself.
    announce: bool,
}

impl Live {
    fn read<T: Transport>(transport: &T, negotiated: Negotiated) -> Result<Self> {
        let has = |feature: Features| negotiated.has(feature.bits());
        Fields::snapshot(transport, |fields| {
            let mut live = Self {
                link: Link {
                    up: true,
                    speed: None,
                    full_duplex: None,
                },
                announce: false,
            };
            if has(Features::STATUS) {
                let status = fields.u16(offset::STATUS);
                live.link.up = status & S_LINK_UP != 0;
                live.announce = has(Features::GUEST_ANNOUNCE) && status & S_ANNOUNCE != 0;
            }
            if has(Features::SPEED_DUPLEX) {
                // Anything else means unknown (spec 5.1.4.2).
                let speed = fields.u32(offset::SPEED);
                live.link.speed = (speed <= 0x7fff_ffff).then_some(speed);
                live.link.full_duplex = match fields.u8(offset::DUPLEX) {
                    0 => Some(false),
                    1 => Some(true),
                    _ => None,
                };
            }
            live
        })
    }
}

#[cfg(test)]
mod tests {
    use virtio_drivers::transport::pci::bus::DeviceFunction;

    use super::*;

    #[test]
    fn no_two_functions_of_a_machine_have_the_same_made_up_address() {
        let mut addresses = alloc::vec::Vec::new();
        for (device, function) in (0..32).flat_map(|device| (0..8).map(move |it| (device, it))) {
            let bus = 0;
            let function = DeviceFunction {
                bus,
                device,
                function,
            };
            addresses.push(MacAddress::made_up(Location::Pci(function)));
            for segment in [1, 7, 0xff, 0x100, 0x107, 0x1ff, 0x200] {
                addresses.push(MacAddress::made_up(Location::PciSegment(segment, function)));
            }
        }
        let count = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), count);
    }
}
