//! What goes over the two queues (spec 5.7.6.7): one struct per message, with the specification's names.
//!
//! The driver writes the commands and the device reads them; the device writes the responses (`Resp...`). Both begin with
//! [`CtrlHdr`]. All numbers are little-endian.

use core::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::damage::{Rect, Size};

/// How many scanouts a device can have (VIRTIO_GPU_MAX_SCANOUTS).
pub const MAX_SCANOUTS: usize = 16;
/// How many bytes of EDID a response has room for.
pub const MAX_EDID_LEN: usize = 1024;
/// Width and height of a cursor's picture.
pub const CURSOR_SIZE: Size = Size::new(64, 64);

/// What a command is, as its header says (`enum virtio_gpu_ctrl_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CommandType {
    /// Which scanouts are enabled, where and how large.
    GetDisplayInfo = 0x0100,
    /// Makes a resource.
    ResourceCreate2d,
    /// Ends a resource.
    ResourceUnref,
    /// Has a scanout show a resource.
    SetScanout,
    /// Shows what was transferred.
    ResourceFlush,
    /// Copies from the backing memory to the resource.
    TransferToHost2d,
    /// Tells where the backing memory is.
    ResourceAttachBacking,
    /// Takes the backing memory back.
    ResourceDetachBacking,
    /// What the monitor says about itself. Only with the feature EDID.
    GetEdid = 0x010a,
    /// Gives a scanout's cursor a picture and a position.
    UpdateCursor = 0x0300,
    /// Gives a scanout's cursor a position.
    MoveCursor,
}

impl CommandType {
    /// The specification's name, without VIRTIO_GPU_CMD.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetDisplayInfo => "GET_DISPLAY_INFO",
            Self::ResourceCreate2d => "RESOURCE_CREATE_2D",
            Self::ResourceUnref => "RESOURCE_UNREF",
            Self::SetScanout => "SET_SCANOUT",
            Self::ResourceFlush => "RESOURCE_FLUSH",
            Self::TransferToHost2d => "TRANSFER_TO_HOST_2D",
            Self::ResourceAttachBacking => "RESOURCE_ATTACH_BACKING",
            Self::ResourceDetachBacking => "RESOURCE_DETACH_BACKING",
            Self::GetEdid => "GET_EDID",
            Self::UpdateCursor => "UPDATE_CURSOR",
            Self::MoveCursor => "MOVE_CURSOR",
        }
    }

    /// The type of the response to it when all is well.
    pub const fn response(self) -> u32 {
        match self {
            Self::GetDisplayInfo => response::OK_DISPLAY_INFO,
            Self::GetEdid => response::OK_EDID,
            _ => response::OK_NODATA,
        }
    }

    /// The length of that response.
    pub const fn response_len(self) -> usize {
        match self {
            Self::GetDisplayInfo => size_of::<RespDisplayInfo>(),
            Self::GetEdid => size_of::<RespEdid>(),
            _ => size_of::<CtrlHdr>(),
        }
    }
}

impl fmt::Display for CommandType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Types of responses.
pub mod response {
    /// Done.
    pub const OK_NODATA: u32 = 0x1100;
    /// Done; see [`super::RespDisplayInfo`].
    pub const OK_DISPLAY_INFO: u32 = 0x1101;
    /// Done; see [`super::RespEdid`].
    pub const OK_EDID: u32 = 0x1104;
    /// Something went wrong; what, the device does not say.
    pub const ERR_UNSPEC: u32 = 0x1200;
    /// The host has no memory for it.
    pub const ERR_OUT_OF_MEMORY: u32 = 0x1201;
    /// No such scanout, or none that can do this.
    pub const ERR_INVALID_SCANOUT_ID: u32 = 0x1202;
    /// No such resource, or there is one of that number already.
    pub const ERR_INVALID_RESOURCE_ID: u32 = 0x1203;
    /// No such context.
    pub const ERR_INVALID_CONTEXT_ID: u32 = 0x1204;
    /// Something else in the command is wrong.
    pub const ERR_INVALID_PARAMETER: u32 = 0x1205;
    /// The last of the numbers that are taken for errors; the specification names those above.
    pub const LAST_ERR: u32 = 0x12ff;

    /// The name of an error response in the specification; `None` if the number is not set aside for errors.
    pub const fn error_name(code: u32) -> Option<&'static str> {
        Some(match code {
            ERR_UNSPEC => "ERR_UNSPEC",
            ERR_OUT_OF_MEMORY => "ERR_OUT_OF_MEMORY",
            ERR_INVALID_SCANOUT_ID => "ERR_INVALID_SCANOUT_ID",
            ERR_INVALID_RESOURCE_ID => "ERR_INVALID_RESOURCE_ID",
            ERR_INVALID_CONTEXT_ID => "ERR_INVALID_CONTEXT_ID",
            ERR_INVALID_PARAMETER => "ERR_INVALID_PARAMETER",
            0x1206..=LAST_ERR => "an error unknown to the specification",
            _ => return None,
        })
    }
}

/// In a command: answer only when all is done. In a response: this is the answer to a command with the flag.
pub const FLAG_FENCE: u32 = 1;

/// `struct virtio_gpu_ctrl_hdr`: how every command and response begins. The writer of the message writes all of it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CtrlHdr {
    /// A [`CommandType`], or of [`mod@response`].
    pub type_: U32,
    /// [`FLAG_FENCE`].
    pub flags: U32,
    /// With the flag: any number in a command, the same in the response to it.
    pub fence_id: U64,
    /// For 3D.
    pub ctx_id: U32,
    /// For 3D.
    pub ring_idx: u8,
    /// Zero.
    pub padding: [u8; 3],
}

impl CtrlHdr {
    /// The header of a command, fenced if `fence` says with what.
    pub fn new(command: CommandType, fence: Option<u64>) -> Self {
        Self {
            type_: U32::new(command as u32),
            flags: U32::new(fence.map_or(0, |_| FLAG_FENCE)),
            fence_id: U64::new(fence.unwrap_or(0)),
            ctx_id: U32::ZERO,
            ring_idx: 0,
            padding: [0; 3],
        }
    }

    /// The number of the fence, if there is one.
    pub fn fence(&self) -> Option<u64> {
        (self.flags.get() & FLAG_FENCE != 0).then(|| self.fence_id.get())
    }
}

/// `struct virtio_gpu_rect`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireRect {
    /// Left edge.
    pub x: U32,
    /// Upper edge.
    pub y: U32,
    /// Pixels to the right.
    pub width: U32,
    /// Pixels downwards.
    pub height: U32,
}

impl From<Rect> for WireRect {
    fn from(rect: Rect) -> Self {
        Self {
            x: U32::new(rect.x),
            y: U32::new(rect.y),
            width: U32::new(rect.width),
            height: U32::new(rect.height),
        }
    }
}

impl From<WireRect> for Rect {
    fn from(rect: WireRect) -> Self {
        Self {
            x: rect.x.get(),
            y: rect.y.get(),
            width: rect.width.get(),
            height: rect.height.get(),
        }
    }
}

/// Answered with [`RespDisplayInfo`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetDisplayInfo {
    /// [`CommandType::GetDisplayInfo`].
    pub hdr: CtrlHdr,
}

/// One scanout in [`RespDisplayInfo`] (`struct virtio_gpu_display_one`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DisplayOne {
    /// Where it is in the arrangement of all, and how large it wants to be.
    pub r: WireRect,
    /// Not zero: a user looks at it.
    pub enabled: U32,
    /// Without meaning so far.
    pub flags: U32,
}

/// `struct virtio_gpu_resp_display_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RespDisplayInfo {
    /// [`response::OK_DISPLAY_INFO`].
    pub hdr: CtrlHdr,
    /// Every scanout that there may be, in order.
    pub pmodes: [DisplayOne; MAX_SCANOUTS],
}

/// `struct virtio_gpu_get_edid`. Answered with [`RespEdid`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetEdid {
    /// [`CommandType::GetEdid`].
    pub hdr: CtrlHdr,
    /// Of which scanout.
    pub scanout: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_resp_edid`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RespEdid {
    /// [`response::OK_EDID`].
    pub hdr: CtrlHdr,
    /// How many bytes of `edid` there are.
    pub size: U32,
    /// Zero.
    pub padding: U32,
    /// As VESA specifies it.
    pub edid: [u8; MAX_EDID_LEN],
}

/// How a pixel is laid out in memory (`enum virtio_gpu_formats`), by byte from the first. All have four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Format {
    /// Blue, green, red, alpha: 0xAARRGGBB as a little-endian number.
    B8G8R8A8 = 1,
    /// Blue, green, red, nothing: 0x00RRGGBB as a little-endian number.
    B8G8R8X8 = 2,
}

/// `struct virtio_gpu_resource_create_2d`. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceCreate2d {
    /// [`CommandType::ResourceCreate2d`].
    pub hdr: CtrlHdr,
    /// The resource's number from now on: not 0, and not that of another.
    pub resource_id: U32,
    /// A [`Format`].
    pub format: U32,
    /// In pixels.
    pub width: U32,
    /// In pixels.
    pub height: U32,
}

/// `struct virtio_gpu_resource_unref`. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceUnref {
    /// [`CommandType::ResourceUnref`].
    pub hdr: CtrlHdr,
    /// Which resource is no longer needed.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_set_scanout`. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetScanout {
    /// [`CommandType::SetScanout`].
    pub hdr: CtrlHdr,
    /// Which part of the resource; inside it.
    pub r: WireRect,
    /// Which scanout.
    pub scanout_id: U32,
    /// What it shows; 0 for nothing.
    pub resource_id: U32,
}

/// `struct virtio_gpu_resource_flush`. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceFlush {
    /// [`CommandType::ResourceFlush`].
    pub hdr: CtrlHdr,
    /// Which part of the resource.
    pub r: WireRect,
    /// Which resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_transfer_to_host_2d`. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TransferToHost2d {
    /// [`CommandType::TransferToHost2d`].
    pub hdr: CtrlHdr,
    /// Which part of the resource.
    pub r: WireRect,
    /// Where in the backing memory its first pixel is, in bytes.
    pub offset: U64,
    /// Which resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_resource_attach_backing`, followed by `nr_entries` of [`MemEntry`]. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceAttachBacking {
    /// [`CommandType::ResourceAttachBacking`].
    pub hdr: CtrlHdr,
    /// Which resource.
    pub resource_id: U32,
    /// In how many pieces the memory is.
    pub nr_entries: U32,
}

/// `struct virtio_gpu_mem_entry`: one piece of backing memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemEntry {
    /// As the device addresses it.
    pub addr: U64,
    /// In bytes.
    pub length: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_resource_detach_backing`. Answered with OK_NODATA.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceDetachBacking {
    /// [`CommandType::ResourceDetachBacking`].
    pub hdr: CtrlHdr,
    /// Which resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_cursor_pos`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CursorPos {
    /// On which scanout.
    pub scanout_id: U32,
    /// From its left edge.
    pub x: U32,
    /// From its upper edge.
    pub y: U32,
    /// Zero.
    pub padding: U32,
}

/// `struct virtio_gpu_update_cursor`, for both commands of the cursor queue. Answered with OK_NODATA, or (QEMU) with
/// nothing at all.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UpdateCursor {
    /// [`CommandType::UpdateCursor`] or [`CommandType::MoveCursor`].
    pub hdr: CtrlHdr,
    /// Where to.
    pub pos: CursorPos,
    /// The picture; 0 for none. The specification has a move ignore it; QEMU hides the cursor that is moved with 0.
    pub resource_id: U32,
    /// Which pixel of the picture is at `pos`.
    pub hot_x: U32,
    /// Which pixel of the picture is at `pos`.
    pub hot_y: U32,
    /// Zero.
    pub padding: U32,
}

/// The longest command, without what follows [`ResourceAttachBacking`].
pub const MAX_COMMAND_LEN: usize = size_of::<TransferToHost2d>();

#[cfg(test)]
mod tests {
    use super::*;

    const fn le(value: u32) -> U32 {
        U32::new(value)
    }

    #[test]
    fn messages_are_as_long_as_the_specification_says() {
        assert_eq!(size_of::<CtrlHdr>(), 24);
        assert_eq!(size_of::<GetDisplayInfo>(), 24);
        assert_eq!(size_of::<RespDisplayInfo>(), 24 + 16 * 24);
        assert_eq!(size_of::<GetEdid>(), 32);
        assert_eq!(size_of::<RespEdid>(), 24 + 8 + 1024);
        assert_eq!(size_of::<ResourceCreate2d>(), 40);
        assert_eq!(size_of::<ResourceUnref>(), 32);
        assert_eq!(size_of::<SetScanout>(), 48);
        assert_eq!(size_of::<ResourceFlush>(), 48);
        assert_eq!(size_of::<TransferToHost2d>(), 56);
        assert_eq!(size_of::<ResourceAttachBacking>(), 32);
        assert_eq!(size_of::<MemEntry>(), 16);
        assert_eq!(size_of::<ResourceDetachBacking>(), 32);
        assert_eq!(size_of::<UpdateCursor>(), 56);
        assert!(size_of::<UpdateCursor>() <= MAX_COMMAND_LEN);
    }

    #[test]
    fn a_transfer_is_laid_out_as_the_specification_says() {
        let message = TransferToHost2d {
            hdr: CtrlHdr::new(CommandType::TransferToHost2d, Some(0x1122_3344_5566_7788)),
            r: Rect::new(1, 2, 3, 4).into(),
            offset: U64::new(5),
            resource_id: le(6),
            padding: le(0),
        };
        let mut expected = [0u8; 56];
        expected[..2].copy_from_slice(&[0x05, 0x01]);
        expected[4] = 1;
        expected[8..16].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        (expected[24], expected[28], expected[32], expected[36]) = (1, 2, 3, 4);
        (expected[40], expected[48]) = (5, 6);
        assert_eq!(message.as_bytes(), expected);
    }

    #[test]
    fn a_cursor_update_is_laid_out_as_the_specification_says() {
        let message = UpdateCursor {
            hdr: CtrlHdr::new(CommandType::UpdateCursor, None),
            pos: CursorPos {
                scanout_id: le(1),
                x: le(2),
                y: le(3),
                padding: le(0),
            },
            resource_id: le(4),
            hot_x: le(5),
            hot_y: le(6),
            padding: le(0),
        };
        let mut expected = [0u8; 56];
        expected[..2].copy_from_slice(&[0x00, 0x03]);
        (expected[24], expected[28], expected[32]) = (1, 2, 3);
        (expected[40], expected[44], expected[48]) = (4, 5, 6);
        assert_eq!(message.as_bytes(), expected);
    }

    #[test]
    fn types_have_the_specifications_numbers() {
        use CommandType::*;
        let all = [
            (GetDisplayInfo, 0x100, 0x1101),
            (ResourceCreate2d, 0x101, 0x1100),
            (ResourceUnref, 0x102, 0x1100),
            (SetScanout, 0x103, 0x1100),
            (ResourceFlush, 0x104, 0x1100),
            (TransferToHost2d, 0x105, 0x1100),
            (ResourceAttachBacking, 0x106, 0x1100),
            (ResourceDetachBacking, 0x107, 0x1100),
            (GetEdid, 0x10a, 0x1104),
            (UpdateCursor, 0x300, 0x1100),
            (MoveCursor, 0x301, 0x1100),
        ];
        for (command, number, answer) in all {
            assert_eq!((command as u32, command.response()), (number, answer));
        }
        assert_eq!(response::error_name(0x1205), Some("ERR_INVALID_PARAMETER"));
        assert!(response::error_name(0x12ff).is_some());
        assert_eq!(response::error_name(0x1300), None);
        assert_eq!(response::error_name(0x1100), None);
    }
}
