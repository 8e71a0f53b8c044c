//! What errors and device names say to people, and that they are errors to Rust.

use core::error::Error as _;

use vringlet::authoring::queue::Rejected;
use vringlet::sound::CopyError;
use vringlet::{Buffer, Cause, DeviceId, DeviceName, Error, Failed, Location};

const ERROR: Error = Error::on_queue(
    DeviceName {
        id: DeviceId::BLK,
        location: Location::Mmio(0xfeb0_0000),
    },
    0,
    Cause::QueueFull,
);

/// As `?` does in a function that returns any error.
fn said(error: impl core::error::Error) -> String {
    error.to_string()
}

#[test]
fn every_error_type_says_what_went_wrong() {
    let text = "virtio-blk at mmio 0xfeb00000: queue 0: queue is full";
    assert_eq!(said(ERROR), text);
    assert_eq!(said(Cause::QueueFull), "queue is full");
    let payload = Buffer::from(vec![0]);
    let rejected = Rejected {
        error: ERROR,
        payload,
    };
    assert_eq!(said(&rejected), text);
    let failed = Failed::from(rejected);
    assert_eq!(said(&failed), text);
    // It has no cause besides itself: one that walks along the sources says nothing twice.
    assert!(failed.source().is_none());
    let kept = Failed::<Buffer> {
        error: ERROR,
        request: None,
    };
    assert_eq!(
        said(kept),
        format!("{text} (and the device has the request)")
    );
    type Copy = CopyError<Cause, Error>;
    assert_eq!(
        said(Copy::Source(Cause::NoStatus)),
        "no frames to be had: device wrote no status"
    );
    assert_eq!(said(Copy::Sink(ERROR)), format!("no frames taken: {text}"));
}

#[test]
fn an_error_with_its_request_becomes_one_without() {
    let reject = || Rejected {
        error: ERROR,
        payload: Buffer::from(vec![0]),
    };
    assert_eq!(Error::from(reject()), ERROR);
    assert_eq!(Error::from(Failed::from(reject())), ERROR);
}

#[test]
fn device_types_have_the_names_of_the_specification() {
    for (id, number, text) in [
        (DeviceId::NET, 1, "virtio-net"),
        (DeviceId::NINE_P, 9, "virtio-9p"),
        (DeviceId::MEMORY_BALLOON, 13, "virtio-memory-balloon"),
        (DeviceId::GPU, 16, "virtio-gpu"),
        (DeviceId::RTC, 17, "virtio-rtc"),
        (DeviceId::CAN, 36, "virtio-can"),
        (DeviceId::PARAMETER_SERVER, 38, "virtio-parameter-server"),
        (DeviceId::USB, 49, "virtio-usb"),
    ] {
        assert_eq!((id.0, id.to_string().as_str()), (number, text));
    }
    // 14 and 15 were never given to anybody, 37 is not in the table.
    let unknown = [0, 14, 15, 37, 50, u32::MAX].map(DeviceId);
    assert!(unknown.iter().all(|id| id.name().is_none()));
    assert_eq!(unknown[3].to_string(), "virtio device type 37");
    let mut names: Vec<_> = (0..64).filter_map(|id| DeviceId(id).name()).collect();
    assert_eq!(names.len(), 46);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 46, "a name for each, and none for two");
}

/// Whoever reads a log has the evidence: each number and name that a cause carries is in its text.
#[test]
fn every_cause_says_what_was_seen() {
    let said = |causes: &[(Cause, &str)]| {
        for (cause, text) in causes {
            assert_eq!(cause.to_string(), *text);
        }
    };
    // Finding and initialising.
    let (vendor, device) = (0x8086, 0x10d3);
    let (offered, accepted, missing) = (0x30, 0x1_3000_0000, 1 << 32 | 1 << 63);
    said(&[
        (
            Cause::NotVirtio { vendor, device },
            "not a virtio device (PCI id 8086:10d3)",
        ),
        (
            Cause::NotVirtioMmio { magic: 0x1234 },
            "no virtio registers (magic value 0x00001234)",
        ),
        (
            Cause::UnknownVersion { version: 0x13 },
            "registers of unknown version 0x13",
        ),
        (Cause::LegacyOnly, "offers the legacy interface only"),
        (
            Cause::WrongDeviceType { expected: 2 },
            "not of the driver's type, virtio-blk",
        ),
        (
            Cause::NoStockType,
            "virtio-drivers does not know this device type",
        ),
        (
            Cause::MissingCapability("notification"),
            "has no notification capability",
        ),
        (
            Cause::BadCapability {
                offset: 0x4,
                reason: "too short",
            },
            "bad PCI capability at 0x04: too short",
        ),
        (
            Cause::ResetTimeout { status: 0x8f },
            "did not finish its reset (status 0x8f)",
        ),
        (
            Cause::MissingFeatures { offered, missing },
            "does not offer VERSION_1 bit63 (offers 0x30)",
        ),
        (
            Cause::FeaturesRefused { offered, accepted },
            "refused features 0x130000000 of the 0x30 offered",
        ),
        (Cause::NeedsReset, "needs a reset"),
        (
            Cause::ConfigOutOfRange {
                offset: 0x3e,
                len: 4,
            },
            "configuration has no 4 bytes at 0x3e",
        ),
        (Cause::ConfigUnstable, "configuration changes without end"),
        (
            Cause::BadConfig {
                field: "blk_size",
                value: 3,
            },
            "impossible configuration: blk_size = 0x3",
        ),
        (Cause::VectorRefused(5), "refused MSI-X vector 5"),
        (
            Cause::BadRegisters {
                address: 0xfeb0_0000,
                len: 0x200,
            },
            "no registers can be mapped at 0xfeb00000, 0x200 bytes",
        ),
        (Cause::NoMemory, "no memory on the heap"),
        (Cause::NoDmaMemory, "no memory for DMA"),
    ]);
    // Queues.
    said(&[
        (Cause::NoSuchQueue, "no such queue"),
        (Cause::QueueInUse, "queue is in use already"),
        (Cause::QueueRefused, "device did not turn the queue on"),
        (
            Cause::QueueSize { size: 3, max: 256 },
            "queue size 3 is not a power of two up to 256",
        ),
        (Cause::EmptyRequest, "request has an empty segment or none"),
        (
            Cause::TooManySegments {
                segments: 9,
                max: 8,
            },
            "request of 9 segments, at most 8 fit",
        ),
        (
            Cause::TooManyRanges { ranges: 3, max: 1 },
            "request of 3 ranges, at most 1 are allowed",
        ),
        (
            Cause::RangeTooLong {
                sectors: 70,
                max: 64,
            },
            "range of 70 sectors, at most 64 are allowed",
        ),
        (Cause::RequestTooLong, "request of 4 GiB or more"),
        (
            Cause::BadUsedId { id: 99 },
            "device returned id 99, which is not in flight",
        ),
        (
            Cause::BadUsedLength {
                len: 513,
                room: 512,
            },
            "device claims 513 bytes written where 512 fit",
        ),
        (
            Cause::BadUsedIndex {
                index: 7,
                in_flight: 2,
            },
            "device moved the used index to 7 with 2 requests in flight",
        ),
        (
            Cause::QueueBroken,
            "queue was given up after the device broke its rules",
        ),
        (Cause::Timeout, "no answer in the time allowed"),
        (Cause::Unanswered { seconds: 30 }, "no answer in 30 s"),
    ]);
    // Answers.
    let command = "SET_SCANOUT";
    said(&[
        (Cause::DeviceError, "device reports an I/O error"),
        (Cause::Unsupported, "request is not supported"),
        (Cause::CommandRefused, "device refused the command"),
        (Cause::LinkDown, "link is down"),
        (Cause::UnknownStatus(9), "unknown status 0x09"),
        (
            Cause::ShortResponse { len: 8, need: 24 },
            "device wrote 8 bytes of the 24 needed",
        ),
        (
            Cause::Refused {
                command,
                code: 0x1203,
                name: "ERR_INVALID_RESOURCE_ID",
            },
            "device answered SET_SCANOUT with ERR_INVALID_RESOURCE_ID (0x1203)",
        ),
        (
            Cause::UnexpectedResponse {
                command,
                code: 0x1101,
            },
            "response 0x1101 is no answer to SET_SCANOUT",
        ),
        (
            Cause::BadResponse {
                command,
                what: "too long",
            },
            "answer to SET_SCANOUT: too long",
        ),
        (
            Cause::FenceMismatch {
                command,
                sent: 4,
                received: Some(5),
            },
            "SET_SCANOUT with fence 4 came back with fence 5",
        ),
        (
            Cause::FenceMismatch {
                command,
                sent: 4,
                received: None,
            },
            "SET_SCANOUT with fence 4 came back without one",
        ),
        (
            Cause::FlushFailed { ret: 0xffff_fffb },
            "flush failed (ret 0xfffffffb)",
        ),
        (
            Cause::MemoryKept { resources: 3 },
            "device keeps the memory of 3 resources that it was told to end",
        ),
        (
            Cause::WrongState {
                command: "START",
                state: "released",
            },
            "no START for a stream that is released",
        ),
        (Cause::Busy, "an earlier command on it is not finished"),
        (
            Cause::OutOfRange {
                start: 60,
                count: 8,
                capacity: 64,
            },
            "8 at 60 is past the end (64)",
        ),
        (
            Cause::Misaligned {
                value: 513,
                unit: 512,
            },
            "513 is not a multiple of 512",
        ),
        (Cause::ReadOnly, "device is read-only"),
        (
            Cause::InvalidParameter("no such stream"),
            "invalid parameter: no such stream",
        ),
    ]);
}

#[test]
fn an_error_of_a_whole_device_names_no_queue() {
    let error = Error::new(ERROR.device, Cause::NeedsReset);
    assert_eq!(said(error), "virtio-blk at mmio 0xfeb00000: needs a reset");
}
