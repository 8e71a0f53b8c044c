//! A device that writes back what it reads, and payloads for it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use vringlet::authoring::queue::{Chain, Payload};
use vringlet::authoring::queue::{Queue, QueueOptions};
use vringlet::authoring::start::{driver_ok, negotiate};
use vringlet::fake::{DeviceModel, FakeTransport, Queues};
use vringlet::{Buffer, DeviceId, Transport};

/// Writes what it reads of each request, as far as there is room.
pub(crate) struct Echo {
    size: u16,
    /// How many requests it served.
    pub(crate) served: u64,
}

impl Echo {
    pub(crate) fn new(size: u16) -> Self {
        Self { size, served: 0 }
    }
}

impl DeviceModel for Echo {
    fn id(&self) -> DeviceId {
        DeviceId(4)
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.size]
    }
    fn config(&self) -> Vec<u8> {
        (0..32).collect()
    }
    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(queue) {
            let written = request.write(0, &request.read_all());
            self.served += 1;
            queues.push(queue, request, written as u32);
        }
    }
}

/// A request of some buffers to read and some to write.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) readable: Vec<Buffer>,
    pub(crate) writable: Vec<Buffer>,
}

impl Data {
    pub(crate) fn new(read: &[u8], room: usize) -> Self {
        Self {
            readable: vec![Buffer::from(read.to_vec())],
            writable: vec![Buffer::from(vec![0; room])],
        }
    }

    pub(crate) fn writable(&self) -> &[u8] {
        &self.writable[0]
    }
}

impl Payload for Data {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        for buffer in &self.readable {
            chain.readable(buffer);
        }
        for buffer in &mut self.writable {
            chain.writable(buffer);
        }
    }
}

pub(crate) type EchoQueue<P> = Queue<FakeTransport<Echo>, P>;

/// Initialises the device, doing without the features `declined`.
pub(crate) fn start<P: Payload>(
    transport: &mut FakeTransport<Echo>,
    options: QueueOptions,
    declined: u64,
) -> EchoQueue<P> {
    let negotiated = negotiate(transport, 0, 0, declined).expect("an honest device");
    let queue = Queue::new(transport, 0, options, negotiated).expect("a queue");
    driver_ok(transport).expect("an honest device");
    assert_eq!(transport.device().status(), transport.status());
    queue
}
