//! The queue against a device that follows the specification to the letter.

mod common;

use common::{Data, Echo, start};
use vringlet::fake::{FakeDevice, Fault, Memory};
use vringlet::{QueueOptions, Transport};

#[test]
fn a_request_goes_out_and_comes_back() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let mut transport = device.transport();
    let mut queue = start(&mut transport, QueueOptions::default(), 0);
    assert_eq!(queue.size(), 8, "the device's maximum");

    let token = queue
        .submit(&[], Data::new(b"hello", 16))
        .expect("an empty queue");
    assert_eq!(device.notifications(0), 0);
    queue.kick();
    let completion = queue.poll(&mut []).expect("an honest device").expect("one");
    assert_eq!(completion.token, token);
    assert_eq!(completion.written, Ok(5));
    assert_eq!(&completion.payload.writable()[..5], b"hello");

    let proof = transport.reset().expect("an honest device");
    assert!(queue.release(&proof).is_empty());
    drop(queue);
    memory.assert_clean();
}

#[test]
fn a_proof_of_an_earlier_reset_releases_nothing() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(8));
    let other = FakeDevice::new(Echo::new(8));
    device.inject(Fault::Silent);
    let mut transport = device.transport();
    let stale = transport.reset().expect("an honest device");
    let mut queue = start(&mut transport, QueueOptions::default(), 0);
    let token = queue.submit(&[], Data::new(b"x", 1)).expect("room");
    queue.kick();

    assert!(queue.release(&stale).is_empty());
    let foreign = other.transport().reset().expect("an honest device");
    assert!(queue.release(&foreign).is_empty());
    assert_eq!(queue.in_flight(), 1, "the device still has it");

    let proof = transport.reset().expect("an honest device");
    let back = queue.release(&proof);
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].0, token);
    drop(queue);
    memory.assert_clean();
}
