//! What errors and device names say to people, and that they are errors to Rust.

use core::error::Error as _;

use vringlet::queue::Rejected;
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
