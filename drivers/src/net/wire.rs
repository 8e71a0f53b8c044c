//! What goes over the queues, byte by byte (spec 5.1.6).

use super::config::MacAddress;

/// Length of `struct virtio_net_hdr` in front of every frame, without the fields of features that this driver does not
/// accept (spec 5.1.6.3.1).
pub(super) const HEADER_LEN: usize = 12;
/// Length of an Ethernet header: two addresses and the type.
pub(super) const ETHERNET_HEADER_LEN: usize = 14;
/// Length of an 802.1Q tag, which may come on top of the MTU.
pub(super) const VLAN_TAG_LEN: usize = 4;

/// The checksum is left for the receiver to finish. Only if agreed on, which it is not.
const HDR_F_NEEDS_CSUM: u8 = 1;
/// A whole frame, no segment of a larger one.
const HDR_GSO_NONE: u8 = 0;

/// The fields of `struct virtio_net_hdr` that matter to a receiver without offloads.
///
/// All fields of a sender's header are zero then (spec 5.1.6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// HDR_F bits; the device writes them on receive.
    pub(super) flags: u8,
    /// How the frame is segmented; the device writes it on receive.
    pub(super) gso_type: u8,
    /// How many buffers the frame is spread over; the device writes it on receive.
    pub(super) num_buffers: u16,
}

impl Header {
    /// Reads the header at the beginning of a received buffer; `None` if the buffer is too short.
    pub(super) fn parse(buffer: &[u8]) -> Option<Self> {
        // flags, gso_type, le16 hdr_len, gso_size, csum_start, csum_offset, num_buffers
        let [flags, gso_type, _, _, _, _, _, _, _, _, low, high] =
            *buffer.first_chunk::<HEADER_LEN>()?;
        Some(Self {
            flags,
            gso_type,
            num_buffers: u16::from_le_bytes([low, high]),
        })
    }

    /// Whether it describes a frame that is whole: no unfinished checksum, no segmentation.
    ///
    /// `HDR_F_DATA_VALID` is let pass: tap back ends set it uninvited, and it asks nothing of the driver.
    pub(super) fn is_plain(&self) -> bool {
        self.flags & HDR_F_NEEDS_CSUM == 0 && self.gso_type == HDR_GSO_NONE
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
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0x34, 0x12, 0xff];
        let header = Header::parse(&bytes).expect("twelve bytes");
        assert_eq!(
            (header.flags, header.gso_type, header.num_buffers),
            (1, 2, 0x1234)
        );
        assert_eq!(Header::parse(&bytes[..11]), None);
    }

    #[test]
    fn only_whole_frames_are_plain() {
        let header = |flags, gso_type| Header {
            flags,
            gso_type,
            num_buffers: 1,
        };
        assert!(header(0, 0).is_plain());
        assert!(header(2, 0).is_plain());
        assert!(!header(1, 0).is_plain());
        assert!(!header(0, 1).is_plain());
        assert!(!header(0, 0x80).is_plain());
    }

    #[test]
    fn mac_tables_are_laid_out_as_specified() {
        let mut data = alloc::vec::Vec::new();
        append_mac_table(&mut data, &[MacAddress([2, 0, 0, 0, 0, 7])]);
        append_mac_table(&mut data, &[]);
        assert_eq!(data, [1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0]);
    }
}
