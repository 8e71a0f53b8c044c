//! What goes over the four queues (spec 5.14.6): one struct per message, with the specification's names.
//!
//! The driver writes the requests and the device reads them; the device writes the responses, the items of information
//! and the events. All numbers are little-endian, and nothing is padded but where a field says so.

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Cause;

/// The most channels of a channel map (VIRTIO_SND_CHMAP_MAX_SIZE).
pub const CHMAP_MAX_SIZE: usize = 18;
/// The most bytes that a control element's metadata may have as a value.
pub const MAX_TLV_LEN: usize = 65536;
/// Length of `union virtio_snd_ctl_value`.
pub(super) const CTL_VALUE_LEN: usize = 512;
/// Length of `struct virtio_snd_hdr`, which every response begins with.
pub(super) const HDR_LEN: usize = 4;
/// Length of `struct virtio_snd_ctl_enum_item`.
pub(super) const ENUM_ITEM_LEN: usize = 64;

/// What a control message asks for (VIRTIO_SND_R_...).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RequestType {
    /// What the jacks are.
    JackInfo = 1,
    /// Another association or sequence for a jack.
    JackRemap,
    /// What the streams can do.
    PcmInfo = 0x0100,
    /// What a stream shall carry.
    PcmSetParams,
    /// The device gets resources for a stream.
    PcmPrepare,
    /// And gives them up again, with all that is still queued.
    PcmRelease,
    /// The stream runs.
    PcmStart,
    /// The stream stands still.
    PcmStop,
    /// Which channel is where.
    ChmapInfo = 0x0200,
    /// What the control elements are. The ones from here on only with the feature CTLS.
    CtlInfo = 0x0300,
    /// The values of an enumerated element by name.
    CtlEnumItems,
    /// An element's value.
    CtlRead,
    /// Another value.
    CtlWrite,
    /// An element's metadata.
    CtlTlvRead,
    /// Other metadata.
    CtlTlvWrite,
    /// A command that concerns metadata.
    CtlTlvCommand,
}

impl RequestType {
    /// The specification's name, without VIRTIO_SND_R.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JackInfo => "JACK_INFO",
            Self::JackRemap => "JACK_REMAP",
            Self::PcmInfo => "PCM_INFO",
            Self::PcmSetParams => "PCM_SET_PARAMS",
            Self::PcmPrepare => "PCM_PREPARE",
            Self::PcmRelease => "PCM_RELEASE",
            Self::PcmStart => "PCM_START",
            Self::PcmStop => "PCM_STOP",
            Self::ChmapInfo => "CHMAP_INFO",
            Self::CtlInfo => "CTL_INFO",
            Self::CtlEnumItems => "CTL_ENUM_ITEMS",
            Self::CtlRead => "CTL_READ",
            Self::CtlWrite => "CTL_WRITE",
            Self::CtlTlvRead => "CTL_TLV_READ",
            Self::CtlTlvWrite => "CTL_TLV_WRITE",
            Self::CtlTlvCommand => "CTL_TLV_COMMAND",
        }
    }
}

impl fmt::Display for RequestType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a response or a transfer's status says (VIRTIO_SND_S_...).
pub mod status {
    /// Done.
    pub const OK: u32 = 0x8000;
    /// The message is malformed or has invalid parameters.
    pub const BAD_MSG: u32 = 0x8001;
    /// The device does not do that.
    pub const NOT_SUPP: u32 = 0x8002;
    /// It failed.
    pub const IO_ERR: u32 = 0x8003;
    /// What the queue puts where the device shall write a status.
    pub(in super::super) const NOT_WRITTEN: u32 = u32::MAX;
}

/// What a status means. It is trusted no further than this.
pub(super) fn check_status(command: &'static str, code: u32) -> Result<(), Cause> {
    let name = match code {
        status::OK => return Ok(()),
        status::NOT_WRITTEN => return Err(Cause::NoStatus),
        status::BAD_MSG => "BAD_MSG",
        status::NOT_SUPP => "NOT_SUPP",
        status::IO_ERR => "IO_ERR",
        _ => return Err(Cause::UnexpectedResponse { command, code }),
    };
    Err(Cause::Refused {
        command,
        code,
        name,
    })
}

/// Types of events (VIRTIO_SND_EVT_...).
pub(super) mod event {
    pub(in super::super) const JACK_CONNECTED: u32 = 0x1000;
    pub(in super::super) const JACK_DISCONNECTED: u32 = 0x1001;
    pub(in super::super) const PCM_PERIOD_ELAPSED: u32 = 0x1100;
    pub(in super::super) const PCM_XRUN: u32 = 0x1101;
    pub(in super::super) const CTL_NOTIFY: u32 = 0x1200;
}

/// Feature bits of a stream (VIRTIO_SND_PCM_F_...), as masks.
pub mod stream_feature {
    /// Memory of the host, shared with the guest: a placeholder in the specification.
    pub const SHMEM_HOST: u32 = 1 << 0;
    /// Memory of the guest, shared with the host: a placeholder in the specification.
    pub const SHMEM_GUEST: u32 = 1 << 1;
    /// The device polls the queues.
    pub const MSG_POLLING: u32 = 1 << 2;
    /// The device says when a period of shared memory is over.
    pub const EVT_SHMEM_PERIODS: u32 = 1 << 3;
    /// The device says when a stream ran dry or over.
    pub const EVT_XRUNS: u32 = 1 << 4;
    /// Their names.
    pub const NAMES: &[(u32, &str)] = &[
        (SHMEM_HOST, "SHMEM_HOST"),
        (SHMEM_GUEST, "SHMEM_GUEST"),
        (MSG_POLLING, "MSG_POLLING"),
        (EVT_SHMEM_PERIODS, "EVT_SHMEM_PERIODS"),
        (EVT_XRUNS, "EVT_XRUNS"),
    ];
}

/// The length of the longest request, metadata and values aside: `struct virtio_snd_pcm_set_params`.
pub(super) const MAX_REQUEST_LEN: usize = size_of::<PcmSetParams>();

/// `struct virtio_snd_query_info`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct QueryInfo {
    pub(super) code: U32,
    pub(super) start_id: U32,
    pub(super) count: U32,
    /// Bytes of one item.
    pub(super) size: U32,
}

/// `struct virtio_snd_jack_hdr`, `virtio_snd_pcm_hdr` and `virtio_snd_ctl_hdr`, which are the same.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ItemHdr {
    pub(super) code: U32,
    pub(super) id: U32,
}

/// `struct virtio_snd_jack_remap`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct JackRemap {
    pub(super) hdr: ItemHdr,
    pub(super) association: U32,
    pub(super) sequence: U32,
}

/// `struct virtio_snd_pcm_set_params`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct PcmSetParams {
    pub(super) hdr: ItemHdr,
    pub(super) buffer_bytes: U32,
    pub(super) period_bytes: U32,
    pub(super) features: U32,
    pub(super) channels: u8,
    pub(super) format: u8,
    pub(super) rate: u8,
    pub(super) padding: u8,
}

/// `struct virtio_snd_jack_info`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawJackInfo {
    pub(super) hda_fn_nid: U32,
    pub(super) features: U32,
    pub(super) hda_reg_defconf: U32,
    pub(super) hda_reg_caps: U32,
    pub(super) connected: u8,
    pub(super) padding: [u8; 7],
}

/// `struct virtio_snd_pcm_info`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawPcmInfo {
    pub(super) hda_fn_nid: U32,
    pub(super) features: U32,
    pub(super) formats: U64,
    pub(super) rates: U64,
    pub(super) direction: u8,
    pub(super) channels_min: u8,
    pub(super) channels_max: u8,
    pub(super) padding: [u8; 5],
}

/// `struct virtio_snd_chmap_info`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawChmapInfo {
    pub(super) hda_fn_nid: U32,
    pub(super) direction: u8,
    pub(super) channels: u8,
    pub(super) positions: [u8; CHMAP_MAX_SIZE],
}

/// `struct virtio_snd_ctl_info`, 92 bytes: the specification's structures have no padding (1.4, "Structure
/// Specifications"), and this one needs none for its le64s.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawCtlInfo {
    pub(super) hda_fn_nid: U32,
    pub(super) role: U32,
    pub(super) kind: U32,
    pub(super) access: U32,
    pub(super) count: U32,
    pub(super) index: U32,
    pub(super) name: [u8; 44],
    /// What it says depends on `kind`: three le32, three le64, or one le32.
    pub(super) value: [u8; 24],
}

/// `struct virtio_snd_event`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawEvent {
    pub(super) code: U32,
    pub(super) data: U32,
}

/// Length of `struct virtio_snd_event`.
pub(super) const EVENT_LEN: usize = size_of::<RawEvent>();

/// What `struct virtio_snd_ctl_event` has in the place of [`RawEvent::data`].
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawCtlEvent {
    pub(super) control_id: U16,
    pub(super) mask: U16,
}

/// Length of `struct virtio_snd_pcm_xfer`, which every transfer begins with: le32 stream_id, written by the driver.
pub(super) const XFER_LEN: usize = 4;

/// Length of `struct virtio_snd_pcm_status`, which every transfer ends with: le32 status, le32 latency_bytes, written by
/// the device.
pub(super) const STATUS_LEN: usize = 8;

/// `status` and `latency_bytes` of a `struct virtio_snd_pcm_status`.
pub(super) fn decode_status(bytes: [u8; STATUS_LEN]) -> (u32, u32) {
    let word = u64::from_le_bytes(bytes);
    (word as u32, (word >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_lengths_of_the_specification() {
        assert_eq!(size_of::<QueryInfo>(), 16);
        assert_eq!(size_of::<ItemHdr>(), 8);
        assert_eq!(size_of::<JackRemap>(), 16);
        assert_eq!(size_of::<PcmSetParams>(), 24);
        assert_eq!(size_of::<RawJackInfo>(), 24);
        assert_eq!(size_of::<RawPcmInfo>(), 32);
        assert_eq!(size_of::<RawChmapInfo>(), 24);
        assert_eq!(size_of::<RawCtlInfo>(), 92);
        assert_eq!(size_of::<RawEvent>(), 8);
    }

    #[test]
    fn each_status_has_its_name() {
        assert_eq!(check_status("X", 0x8000), Ok(()));
        for (code, name) in [
            (0x8001, "BAD_MSG"),
            (0x8002, "NOT_SUPP"),
            (0x8003, "IO_ERR"),
        ] {
            let command = "X";
            let refused = Cause::Refused {
                command,
                code,
                name,
            };
            assert_eq!(check_status(command, code), Err(refused));
        }
        let unknown = Cause::UnexpectedResponse {
            command: "X",
            code: 0x8004,
        };
        assert_eq!(check_status("X", 0x8004), Err(unknown));
        assert_eq!(check_status("X", u32::MAX), Err(Cause::NoStatus));
        assert_eq!(decode_status([1, 0x80, 0, 0, 2, 1, 0, 0]), (0x8001, 0x102));
    }
}
