//! What goes over the queues, byte by byte (spec 5.1.6).

use core::num::NonZeroU16;

use super::config::MacAddress;

/// Length of `struct virtio_net_hdr` in front of every frame, without the fields of features that this driver does not
/// accept (spec 5.1.6.3.1).
pub(super) const HEADER_LEN: usize = 12;
/// Length of an Ethernet header: two addresses and the type.
pub(super) const ETHERNET_HEADER_LEN: usize = 14;
/// Length of an 802.1Q tag, which may come on top of the MTU.
pub(super) const VLAN_TAG_LEN: usize = 4;

/// Everything that may be in front of the IP header of the longest frame: what the MTU does not count.
pub(super) const LINK_HEADERS_LEN: usize = ETHERNET_HEADER_LEN + VLAN_TAG_LEN;
/// The longest frame that stands for several: an Ethernet header, an IPv6 header and 65535 bytes (spec 5.1.6.3).
pub(super) const MAX_LARGE_FRAME: usize = ETHERNET_HEADER_LEN + 40 + 65535;

/// The checksum is left for the receiver to finish, by `csum_start` and `csum_offset`.
const HDR_F_NEEDS_CSUM: u8 = 1;
/// The device verified the checksum.
const HDR_F_DATA_VALID: u8 = 2;

/// Values of `gso_type`: a whole frame, no segment of a larger one.
const HDR_GSO_NONE: u8 = 0;
const HDR_GSO_TCPV4: u8 = 1;
const HDR_GSO_TCPV6: u8 = 4;
const HDR_GSO_UDP_L4: u8 = 5;

/// What the segments are of that one frame stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, over either: each segment is a datagram of its own.
    Udp,
}

impl SegmentKind {
    fn gso_type(self) -> u8 {
        match self {
            Self::Tcp4 => HDR_GSO_TCPV4,
            Self::Tcp6 => HDR_GSO_TCPV6,
            Self::Udp => HDR_GSO_UDP_L4,
        }
    }
}

/// Into how many segments a frame is to be cut, or of how many it was made: their headers are those of the frame, with their
/// own lengths, numbers and checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// What they are.
    pub kind: SegmentKind,
    /// How many bytes of payload each of them has, but for the last, which may have fewer.
    pub size: NonZeroU16,
}

/// Where a checksum belongs that was left unfinished: it is over everything from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartialChecksum {
    /// From the beginning of the frame.
    pub(super) start: u16,
    /// Of the field, from `start`.
    pub(super) offset: u16,
}

/// `struct virtio_net_hdr` as the device wrote it in front of a frame, not judged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    checksum: PartialChecksum,
    /// How many buffers the frame is spread over.
    pub(super) num_buffers: u16,
}

impl Header {
    /// Reads the header at the beginning of a received buffer; `None` if the buffer is too short.
    pub(super) fn parse(buffer: &[u8]) -> Option<Self> {
        // `hdr_len` is not to be relied on (spec 5.1.6.4.2), and nobody here could use it.
        let [flags, gso_type, _, _, g0, g1, s0, s1, o0, o1, n0, n1] =
            *buffer.first_chunk::<HEADER_LEN>()?;
        Some(Self {
            flags,
            gso_type,
            gso_size: u16::from_le_bytes([g0, g1]),
            checksum: PartialChecksum {
                start: u16::from_le_bytes([s0, s1]),
                offset: u16::from_le_bytes([o0, o1]),
            },
            num_buffers: u16::from_le_bytes([n0, n1]),
        })
    }

    /// The checksum is unfinished, as it is where the frame never was on a wire.
    pub(super) fn partial_checksum(&self) -> Option<PartialChecksum> {
        (self.flags & HDR_F_NEEDS_CSUM != 0).then_some(self.checksum)
    }

    /// The device says that it verified the checksum.
    pub(super) fn is_data_valid(&self) -> bool {
        self.flags & HDR_F_DATA_VALID != 0
    }

    /// Whether it says that the frame stands for no others.
    #[inline]
    pub(super) fn is_single(&self) -> bool {
        self.gso_type == HDR_GSO_NONE
    }

    /// The segments that the frame stands for; `None` if it says something that means nothing.
    pub(super) fn segmentation(&self) -> Option<Segmentation> {
        let kind = match self.gso_type {
            HDR_GSO_TCPV4 => SegmentKind::Tcp4,
            HDR_GSO_TCPV6 => SegmentKind::Tcp6,
            HDR_GSO_UDP_L4 => SegmentKind::Udp,
            _ => return None,
        };
        let size = NonZeroU16::new(self.gso_size)?;
        Some(Segmentation { kind, size })
    }
}

/// What the device is to do to a frame that is sent. Nothing at all is a header of zeros (spec 5.1.6.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offload {
    pub(super) checksum: Option<PartialChecksum>,
    /// Only with a checksum. How long the headers are that every segment gets comes with it.
    pub(super) segmentation: Option<(Segmentation, u16)>,
}

impl Offload {
    /// The header that says it.
    #[inline]
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let Some(PartialChecksum { start, offset }) = self.checksum else {
            return [0; HEADER_LEN];
        };
        let (gso_type, hdr_len, gso_size) = match self.segmentation {
            Some((segments, hdr_len)) => (segments.kind.gso_type(), hdr_len, segments.size.get()),
            None => (HDR_GSO_NONE, 0, 0),
        };
        let ([h0, h1], [g0, g1]) = (hdr_len.to_le_bytes(), gso_size.to_le_bytes());
        let ([s0, s1], [o0, o1]) = (start.to_le_bytes(), offset.to_le_bytes());
        // `num_buffers` is for frames that come.
        [
            HDR_F_NEEDS_CSUM,
            gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            0,
            0,
        ]
    }
}

/// Every command begins with its class and number, which the driver writes (spec 5.1.6.5).
pub(super) const COMMAND_HEADER_LEN: usize = 2;
/// And ends with the byte `ack`, which the device writes.
pub(super) const ACK_LEN: usize = 1;

/// Values of `ack`.
pub(super) const OK: u8 = 0;
/// The device refused.
pub(super) const ERR: u8 = 1;

/// Class and number of a command.
pub(super) type CommandHeader = [u8; COMMAND_HEADER_LEN];

pub(super) const CTRL_RX: u8 = 0;
pub(super) const MAC_TABLE_SET: CommandHeader = [1, 0];
pub(super) const MAC_ADDR_SET: CommandHeader = [1, 1];
pub(super) const VLAN_ADD: CommandHeader = [2, 0];
pub(super) const VLAN_DEL: CommandHeader = [2, 1];
pub(super) const ANNOUNCE_ACK: CommandHeader = [3, 0];
pub(super) const GUEST_OFFLOADS_SET: CommandHeader = [5, 0];

/// Appends `struct virtio_net_ctrl_mac`: le32 entries, then the addresses.
pub(super) fn append_mac_table(data: &mut alloc::vec::Vec<u8>, addresses: &[MacAddress]) {
    data.extend_from_slice(&(addresses.len() as u32).to_le_bytes());
    for address in addresses {
        data.extend_from_slice(&address.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_at_its_offsets() {
        let bytes = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x34, 0x12, 0xff];
        let header = Header::parse(&bytes).expect("twelve bytes");
        let checksum = PartialChecksum {
            start: 0x0a09,
            offset: 0x0c0b,
        };
        let segmentation = Segmentation {
            kind: SegmentKind::Tcp6,
            size: NonZeroU16::new(0x0807).expect("not 0"),
        };
        assert_eq!(header.partial_checksum(), Some(checksum));
        assert!(header.is_data_valid() && !header.is_single());
        assert_eq!(header.segmentation(), Some(segmentation));
        assert_eq!(header.num_buffers, 0x1234);
        assert_eq!(Header::parse(&bytes[..11]), None);
    }

    #[test]
    fn what_a_header_does_not_say_is_not_there() {
        let mut bytes = [0; HEADER_LEN];
        let header = |bytes: &[u8]| Header::parse(bytes).expect("twelve bytes");
        let plain = header(&bytes);
        assert!(plain.is_single() && !plain.is_data_valid());
        assert_eq!(plain.partial_checksum(), None);
        // Flags that nobody knows are ignored.
        bytes[0] = 0xfc;
        assert_eq!(header(&bytes).partial_checksum(), None);
        assert!(!header(&bytes).is_data_valid());
        // Types that nobody knows are not, nor is a size of 0.
        for (gso_type, gso_size, known) in [
            (1, 1, true),
            (4, 1, true),
            (5, 1, true),
            (1, 0, false),
            (2, 1, false),
            (3, 1, false),
            (6, 1, false),
            (0x81, 1, false),
            (0x21, 1, false),
        ] {
            (bytes[1], bytes[4]) = (gso_type, gso_size);
            let segmentation = header(&bytes).segmentation();
            assert_eq!(segmentation.is_some(), known, "{gso_type} {gso_size}");
            assert!(!header(&bytes).is_single());
        }
    }

    #[test]
    fn an_offload_is_written_as_specified() {
        assert_eq!(Offload::default().encode(), [0; HEADER_LEN]);
        let checksum = Some(PartialChecksum {
            start: 34,
            offset: 16,
        });
        let segments = Segmentation {
            kind: SegmentKind::Udp,
            size: NonZeroU16::new(0x05a8).expect("not 0"),
        };
        let mut offload = Offload {
            checksum,
            segmentation: None,
        };
        assert_eq!(offload.encode(), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        offload.segmentation = Some((segments, 54));
        assert_eq!(offload.encode(), [1, 5, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    }

    #[test]
    fn mac_tables_are_laid_out_as_specified() {
        let mut data = alloc::vec::Vec::new();
        append_mac_table(&mut data, &[MacAddress([2, 0, 0, 0, 0, 7])]);
        append_mac_table(&mut data, &[]);
        assert_eq!(data, [1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0]);
    }
}
