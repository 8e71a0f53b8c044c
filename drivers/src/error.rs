//! What went wrong: which device, which queue, and the cause with its evidence.

use core::fmt;

use crate::device::{DeviceId, DeviceName};
use crate::features::FeatureNames;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// A failure, with the device (and where there is one the queue) that it happened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// The device, by type and place.
    pub device: DeviceName,
    /// The index of the virtqueue, where the failure concerns one.
    pub queue: Option<u16>,
    /// What happened.
    pub cause: Cause,
}

impl Error {
    /// A failure of a device as a whole.
    pub const fn new(device: DeviceName, cause: Cause) -> Self {
        Self {
            device,
            queue: None,
            cause,
        }
    }

    /// A failure on one virtqueue.
    pub const fn on_queue(device: DeviceName, queue: u16, cause: Cause) -> Self {
        Self {
            device,
            queue: Some(queue),
            cause,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.device)?;
        if let Some(queue) = self.queue {
            write!(f, "queue {queue}: ")?;
        }
        self.cause.fmt(f)
    }
}

impl core::error::Error for Error {}

/// Why an operation failed. Numbers in a variant are the evidence: what was asked, what the device said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    // Finding and initialising the device.
    /// The PCI function is not a virtio device.
    NotVirtio {
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// The registers are not those of virtio over MMIO (spec 4.2.2).
    NotVirtioMmio {
        /// What they have for a magic value.
        magic: u32,
    },
    /// The registers are those of a version of virtio over MMIO that nothing is known of (spec 4.2.2).
    UnknownVersion {
        /// The version.
        version: u32,
    },
    /// The device offers only the legacy interface (virtio 0.9), which this crate does not speak.
    LegacyOnly,
    /// The device is of another type than the driver.
    WrongDeviceType {
        /// The virtio device id that the driver is for.
        expected: u32,
    },
    /// A structure that every modern PCI device has is missing (spec 4.1.4).
    MissingCapability(&'static str),
    /// A PCI capability describes something impossible; the text says what.
    BadCapability {
        /// Offset of the capability in configuration space.
        offset: u8,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The device did not come back from a reset in the time allowed (spec 4.1.4.3.2).
    ResetTimeout {
        /// The last device status read.
        status: u8,
    },
    /// The device lacks features without which the driver can't work.
    MissingFeatures {
        /// All that the device offers.
        offered: u64,
        /// What is required and not offered.
        missing: u64,
    },
    /// The device cleared FEATURES_OK: it won't work with the features accepted (spec 3.1.1 step 6).
    FeaturesRefused {
        /// All that the device offers.
        offered: u64,
        /// What the driver accepted.
        accepted: u64,
    },
    /// The device set DEVICE_NEEDS_RESET (spec 2.1.2).
    NeedsReset,
    /// The configuration space ends before the field.
    ConfigOutOfRange {
        /// Offset of the field in the device configuration, in bytes.
        offset: usize,
        /// Length of the field in bytes.
        len: usize,
    },
    /// The configuration generation kept changing while it was read.
    ConfigUnstable,
    /// The device configuration holds a value that the specification forbids.
    BadConfig {
        /// The field, by its name in the specification.
        field: &'static str,
        /// The value read.
        value: u64,
    },
    /// The device has no MSI-X entry of that number, or refused the vector (spec 4.1.5.1.2).
    VectorRefused(u16),
    /// What a device says are its registers can't be: it is memory of the machine, or out of reach; or there is no room to
    /// map them.
    BadRegisters {
        /// Physical address of the first byte.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The heap (the global allocator) has no memory for a buffer or a table.
    NoMemory,
    /// The platform has no memory to share with a device, for a ring or a picture.
    NoDmaMemory,

    // The virtqueue.
    /// The device has no such queue.
    NoSuchQueue,
    /// The queue is in use already.
    QueueInUse,
    /// The device did not turn the queue on.
    QueueRefused,
    /// The queue size is not a power of two from 1 to 32768, or more than the device allows.
    QueueSize {
        /// What was asked for.
        size: u32,
        /// The largest that the device allows.
        max: u32,
    },
    /// All descriptors are in use: poll for completions, then try again.
    QueueFull,
    /// The request has no segment, or one of no bytes (spec 2.7.4).
    EmptyRequest,
    /// The request has more segments than the queue can ever take.
    TooManySegments {
        /// Segments of the request, header and status included.
        segments: usize,
        /// The most that one request may have.
        max: usize,
    },
    /// The request names more ranges than the device takes at once.
    TooManyRanges {
        /// Ranges in the request.
        ranges: usize,
        /// The most that one request may have.
        max: u32,
    },
    /// A range of the request is longer than the device takes.
    RangeTooLong {
        /// Sectors in the range.
        sectors: u32,
        /// The most that a range may have.
        max: u32,
    },
    /// The request describes more bytes than a descriptor chain can (spec 2.7.5: 2^32).
    RequestTooLong,
    /// The device reported a used element that names no request in flight.
    BadUsedId {
        /// The id in the used element.
        id: u32,
    },
    /// The device claims to have written more than the request had room for.
    BadUsedLength {
        /// The length in the used element, in bytes.
        len: u32,
        /// The device-writable bytes of the request.
        room: u32,
    },
    /// The device moved the used index past what was ever made available.
    BadUsedIndex {
        /// The used index in the ring.
        index: u16,
        /// Requests in flight at that moment.
        in_flight: u16,
    },
    /// The queue was given up after a violation by the device; reset the device to go on.
    QueueBroken,

    // Requests.
    /// Nothing came back in the time allowed; the request stays with the device until it does.
    Timeout,
    /// The device had requests and gave none of them back for so long.
    Unanswered {
        /// How long, in seconds.
        seconds: u64,
    },
    /// The device reported an I/O error.
    DeviceError,
    /// The device does not support the request, or the feature was not negotiated.
    Unsupported,
    /// The device refused a command on its control queue.
    CommandRefused,
    /// The link of a network device is down.
    LinkDown,
    /// A status byte that the specification does not know.
    UnknownStatus(u8),
    /// The device said "used" but wrote no status.
    NoStatus,
    /// The device wrote less than the request needs.
    ShortResponse {
        /// Bytes that it wrote.
        len: u32,
        /// Bytes needed.
        need: u32,
    },
    /// The device answered a command with an error of its type.
    Refused {
        /// The command, by its name in the specification.
        command: &'static str,
        /// The device's code for what is wrong.
        code: u32,
        /// That code's name in the specification.
        name: &'static str,
    },
    /// The device answered a command with something that is no answer to it.
    UnexpectedResponse {
        /// The command, by its name in the specification.
        command: &'static str,
        /// The type of the response.
        code: u32,
    },
    /// The device answered a command with data that can't be.
    BadResponse {
        /// The command, by its name in the specification.
        command: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The device did not say that a fenced command is finished, or said it of another.
    FenceMismatch {
        /// The command, by its name in the specification.
        command: &'static str,
        /// The fence of the command.
        sent: u64,
        /// The fence of the response, if it has one.
        received: Option<u64>,
    },
    /// The device could not make persistent what was written (spec 5.19.7).
    FlushFailed {
        /// What it returned.
        ret: u32,
    },
    /// The device does not give back the memory of resources that it was told to end: only a reset ends its access.
    MemoryKept {
        /// Of how many resources.
        resources: usize,
    },
    /// A command that is not allowed where a stream is in its life.
    WrongState {
        /// The command, by its name in the specification.
        command: &'static str,
        /// Where the stream is.
        state: &'static str,
    },
    /// Something that must be finished first is still with the device: poll, then try again.
    Busy,
    /// The request reaches past the end of the device.
    OutOfRange {
        /// First unit asked for (sectors for a block device, bytes elsewhere).
        start: u64,
        /// Units asked for.
        count: u64,
        /// Units that there are.
        capacity: u64,
    },
    /// A length or address is not a multiple of the device's unit.
    Misaligned {
        /// The value.
        value: u64,
        /// The unit.
        unit: u64,
    },
    /// The device is read-only.
    ReadOnly,
    /// A parameter that no device could take; the text says which.
    InvalidParameter(&'static str),
}

impl core::error::Error for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVirtio { vendor, device } => {
                write!(f, "not a virtio device (PCI id {vendor:04x}:{device:04x})")
            }
            Self::NotVirtioMmio { magic } => {
                write!(f, "no virtio registers (magic value {magic:#010x})")
            }
            Self::UnknownVersion { version } => {
                write!(f, "registers of unknown version {version:#x}")
            }
            Self::LegacyOnly => f.write_str("offers the legacy interface only"),
            Self::WrongDeviceType { expected } => {
                write!(f, "not of the driver's type, {}", DeviceId(*expected))
            }
            Self::MissingCapability(name) => write!(f, "has no {name} capability"),
            Self::BadCapability { offset, reason } => {
                write!(f, "bad PCI capability at {offset:#04x}: {reason}")
            }
            Self::ResetTimeout { status } => {
                write!(f, "did not finish its reset (status {status:#04x})")
            }
            Self::MissingFeatures { offered, missing } => write!(
                f,
                "does not offer {} (offers {offered:#x})",
                FeatureNames::ring(*missing)
            ),
            Self::FeaturesRefused { offered, accepted } => {
                write!(
                    f,
                    "refused features {accepted:#x} of the {offered:#x} offered"
                )
            }
            Self::NeedsReset => f.write_str("needs a reset"),
            Self::ConfigOutOfRange { offset, len } => {
                write!(f, "configuration has no {len} bytes at {offset:#x}")
            }
            Self::ConfigUnstable => f.write_str("configuration changes without end"),
            Self::BadConfig { field, value } => {
                write!(f, "impossible configuration: {field} = {value:#x}")
            }
            Self::VectorRefused(vector) => write!(f, "refused MSI-X vector {vector}"),
            Self::BadRegisters { address, len } => {
                write!(
                    f,
                    "no registers can be mapped at {address:#x}, {len:#x} bytes"
                )
            }
            Self::NoMemory => f.write_str("no memory on the heap"),
            Self::NoDmaMemory => f.write_str("no memory for DMA"),
            Self::NoSuchQueue => f.write_str("no such queue"),
            Self::QueueInUse => f.write_str("queue is in use already"),
            Self::QueueRefused => f.write_str("device did not turn the queue on"),
            Self::QueueSize { size, max } => {
                write!(f, "queue size {size} is not a power of two up to {max}")
            }
            Self::QueueFull => f.write_str("queue is full"),
            Self::EmptyRequest => f.write_str("request has an empty segment or none"),
            Self::TooManySegments { segments, max } => {
                write!(f, "request of {segments} segments, at most {max} fit")
            }
            Self::TooManyRanges { ranges, max } => {
                write!(f, "request of {ranges} ranges, at most {max} are allowed")
            }
            Self::RangeTooLong { sectors, max } => {
                write!(f, "range of {sectors} sectors, at most {max} are allowed")
            }
            Self::RequestTooLong => f.write_str("request of 4 GiB or more"),
            Self::BadUsedId { id } => write!(f, "device returned id {id}, which is not in flight"),
            Self::BadUsedLength { len, room } => {
                write!(f, "device claims {len} bytes written where {room} fit")
            }
            Self::BadUsedIndex { index, in_flight } => write!(
                f,
                "device moved the used index to {index} with {in_flight} requests in flight"
            ),
            Self::QueueBroken => f.write_str("queue was given up after the device broke its rules"),
            Self::Timeout => f.write_str("no answer in the time allowed"),
            Self::Unanswered { seconds } => write!(f, "no answer in {seconds} s"),
            Self::DeviceError => f.write_str("device reports an I/O error"),
            Self::Unsupported => f.write_str("request is not supported"),
            Self::CommandRefused => f.write_str("device refused the command"),
            Self::LinkDown => f.write_str("link is down"),
            Self::UnknownStatus(status) => write!(f, "unknown status {status:#04x}"),
            Self::NoStatus => f.write_str("device wrote no status"),
            Self::ShortResponse { len, need } => {
                write!(f, "device wrote {len} bytes of the {need} needed")
            }
            Self::Refused {
                command,
                code,
                name,
            } => write!(f, "device answered {command} with {name} ({code:#x})"),
            Self::UnexpectedResponse { command, code } => {
                write!(f, "response {code:#x} is no answer to {command}")
            }
            Self::BadResponse { command, what } => write!(f, "answer to {command}: {what}"),
            Self::FenceMismatch {
                command,
                sent,
                received: Some(received),
            } => write!(
                f,
                "{command} with fence {sent} came back with fence {received}"
            ),
            Self::FenceMismatch { command, sent, .. } => {
                write!(f, "{command} with fence {sent} came back without one")
            }
            Self::FlushFailed { ret } => write!(f, "flush failed (ret {ret:#x})"),
            Self::MemoryKept { resources } => write!(
                f,
                "device keeps the memory of {resources} resources that it was told to end"
            ),
            Self::WrongState { command, state } => {
                write!(f, "no {command} for a stream that is {state}")
            }
            Self::Busy => f.write_str("an earlier command on it is not finished"),
            Self::OutOfRange {
                start,
                count,
                capacity,
            } => write!(f, "{count} at {start} is past the end ({capacity})"),
            Self::Misaligned { value, unit } => write!(f, "{value} is not a multiple of {unit}"),
            Self::ReadOnly => f.write_str("device is read-only"),
            Self::InvalidParameter(what) => write!(f, "invalid parameter: {what}"),
        }
    }
}
