//! What goes over the queue (spec 5.2.6).

use core::ops::Range;

use bitflags::bitflags;

use crate::error::Cause;

/// The unit of every position and length of the protocol, whatever the block size.
pub const SECTOR_LEN: usize = 512;

/// The length of the string that VIRTIO_BLK_T_GET_ID gives.
pub const ID_LEN: usize = 20;

bitflags! {
    /// The block device's own feature bits (spec 5.2.3) that this driver implements.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `size_max` bounds a segment.
        const SIZE_MAX = 1 << 1;
        /// `seg_max` bounds the segments of a request.
        const SEG_MAX = 1 << 2;
        /// `geometry` is there.
        const GEOMETRY = 1 << 4;
        /// The device is read-only.
        const RO = 1 << 5;
        /// `blk_size` is there.
        const BLK_SIZE = 1 << 6;
        /// The device has a cache to flush.
        const FLUSH = 1 << 9;
        /// `topology` is there.
        const TOPOLOGY = 1 << 10;
        /// `writeback` switches the cache mode.
        const CONFIG_WCE = 1 << 11;
        /// Discard requests.
        const DISCARD = 1 << 13;
        /// Write zeroes requests.
        const WRITE_ZEROES = 1 << 14;
    }
}

/// Names of all feature bits of the specification, those that this driver declines too.
pub const FEATURE_NAMES: &[(u64, &str)] = &[
    (1 << 0, "BARRIER"),
    (1 << 1, "SIZE_MAX"),
    (1 << 2, "SEG_MAX"),
    (1 << 4, "GEOMETRY"),
    (1 << 5, "RO"),
    (1 << 6, "BLK_SIZE"),
    (1 << 7, "SCSI"),
    (1 << 9, "FLUSH"),
    (1 << 10, "TOPOLOGY"),
    (1 << 11, "CONFIG_WCE"),
    (1 << 12, "MQ"),
    (1 << 13, "DISCARD"),
    (1 << 14, "WRITE_ZEROES"),
    (1 << 15, "LIFETIME"),
    (1 << 16, "SECURE_ERASE"),
    (1 << 17, "ZONED"),
];

/// The type of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// VIRTIO_BLK_T_IN: the device writes sectors to memory.
    Read = 0,
    /// VIRTIO_BLK_T_OUT: the device reads sectors from memory.
    Write = 1,
    /// VIRTIO_BLK_T_FLUSH: completed writes become stable.
    Flush = 4,
    /// VIRTIO_BLK_T_GET_ID: the device's name, [`ID_LEN`] bytes.
    GetId = 8,
    /// VIRTIO_BLK_T_DISCARD: the contents of sectors no longer matter.
    Discard = 11,
    /// VIRTIO_BLK_T_WRITE_ZEROES: sectors become zero.
    WriteZeroes = 13,
}

impl Operation {
    /// Whether it changes what is on the disk.
    pub const fn writes_disk(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }

    /// Whether its data is for the device to write.
    pub const fn writes_memory(self) -> bool {
        matches!(self, Self::Read | Self::GetId)
    }
}

/// Length of what begins each request: the readable part of `struct virtio_blk_req`.
pub(super) const HEADER_LEN: usize = 16;

/// Length of what ends each request: `status`.
pub(super) const STATUS_LEN: usize = 1;

/// The beginning of `struct virtio_blk_req`, all written by the driver: le32 type, le32 reserved, le64 sector.
pub(super) fn header(operation: Operation, sector: u64) -> [u8; HEADER_LEN] {
    let word = u128::from(operation as u32) | u128::from(sector) << 64;
    word.to_le_bytes()
}

/// What the queue puts where the device shall write the status.
const NOT_WRITTEN: u8 = 0xff;

/// VIRTIO_BLK_S_OK.
pub(super) const STATUS_OK: u8 = 0;

/// What a status byte means other than that the request was done. It is trusted no further than this.
pub(super) fn failure(status: u8) -> Option<Cause> {
    match status {
        STATUS_OK => None,
        1 => Some(Cause::DeviceError),
        2 => Some(Cause::Unsupported),
        NOT_WRITTEN => Some(Cause::NoStatus),
        other => Some(Cause::UnknownStatus(other)),
    }
}

/// Length of `struct virtio_blk_discard_write_zeroes`.
pub(super) const RANGE_LEN: usize = 16;

/// `struct virtio_blk_discard_write_zeroes`, all written by the driver: le64 sector, le32 num_sectors, le32 flags. `None`
/// if the range has 2^32 sectors or more.
pub(super) fn encode_range(range: &Range<u64>, unmap: bool) -> Option<[u8; RANGE_LEN]> {
    let count = u32::try_from(range.end.checked_sub(range.start)?).ok()?;
    let word =
        u128::from(range.start) | u128::from(count) << 64 | u128::from(u32::from(unmap)) << 96;
    Some(word.to_le_bytes())
}

/// The first sector and the number of sectors of what [`encode_range`] made.
pub(super) fn decode_range(bytes: &[u8; RANGE_LEN]) -> (u64, u32) {
    let word = u128::from_le_bytes(*bytes);
    (word as u64, (word >> 64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_laid_out_as_the_specification_says() {
        assert_eq!(
            header(Operation::Write, 0x0102_0304_0506_0708),
            [1, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]
        );
        let range = encode_range(&(7..0x1_0000_0006), true);
        let bytes = [7, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];
        assert_eq!(range, Some(bytes));
        assert_eq!(decode_range(&bytes), (7, u32::MAX));
        assert_eq!(encode_range(&(7..0x1_0000_0007), true), None);
        #[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake")]
        let backwards = 7..6;
        assert_eq!(encode_range(&backwards, false), None);
    }

    #[test]
    fn each_status_has_its_name() {
        assert_eq!(failure(0), None);
        assert_eq!(failure(1), Some(Cause::DeviceError));
        assert_eq!(failure(2), Some(Cause::Unsupported));
        assert_eq!(failure(3), Some(Cause::UnknownStatus(3)));
        assert_eq!(failure(255), Some(Cause::NoStatus));
    }
}
