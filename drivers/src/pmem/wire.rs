//! What goes over the queue (spec 5.19.6).

use bitflags::bitflags;

use crate::error::Cause;

bitflags! {
    /// The pmem device's own feature bits (spec 5.19.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The region is the shared-memory region 0, and not what the configuration says.
        const SHMEM_REGION = 1 << 0;
    }
}

/// Names of all feature bits of the specification.
pub const FEATURE_NAMES: &[(u64, &str)] = &[(1 << 0, "SHMEM_REGION")];

/// Length of `struct virtio_pmem_req`: le32 type.
pub(super) const REQUEST_LEN: usize = 4;

/// VIRTIO_PMEM_REQ_TYPE_FLUSH, the only type there is.
pub(super) const FLUSH: [u8; REQUEST_LEN] = 0u32.to_le_bytes();

/// Length of `struct virtio_pmem_resp`, written by the device: le32 ret.
pub(super) const RESPONSE_LEN: usize = 4;

/// What came of a flush of which the device wrote `written` bytes of response.
///
/// The specification knows 0 and -1, QEMU's failures say 1: whatever is not 0 is a failure. A response that was not
/// written reads as -1, too, by what the queue puts there before.
pub(super) fn check(written: u32, ret: [u8; RESPONSE_LEN]) -> Result<(), Cause> {
    let need = RESPONSE_LEN as u32;
    match u32::from_le_bytes(ret) {
        _ if written < need => Err(Cause::ShortResponse { len: written, need }),
        0 => Ok(()),
        ret => Err(Cause::FlushFailed { ret }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_zero_is_success() {
        assert_eq!(check(4, [0; 4]), Ok(()));
        let failed = |ret| Err(Cause::FlushFailed { ret });
        assert_eq!(check(4, [1, 0, 0, 0]), failed(1));
        assert_eq!(check(4, [0, 0, 0, 1]), failed(1 << 24));
        assert_eq!(check(4, [0xff; 4]), failed(u32::MAX));
        for len in 0..4 {
            let short = Err(Cause::ShortResponse { len, need: 4 });
            assert_eq!(check(len, [0; 4]), short);
        }
    }
}
