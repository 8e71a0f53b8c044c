//! [`FakePmem`]: persistent memory behind virtio-pmem (spec 5.19), as choosy about its notifications as QEMU's.

use std::vec::Vec;

use super::device::{DeviceModel, Queues};
use crate::device::DeviceId;

/// Persistent memory. Its fields say what it offers and hold what it did; change them before the driver is made, or by
/// [`FakeDevice::with`](super::FakeDevice::with).
#[derive(Clone, Debug)]
pub struct FakePmem {
    /// What was written to the region.
    pub memory: Vec<u8>,
    /// What is sure to be left of it after a power failure: what was there when the device last began a flush, and no
    /// later write.
    pub persistent: Vec<u8>,
    /// Feature bits of the device type that it offers.
    pub features: u64,
    /// `start`.
    pub start: u64,
    /// `size`; at first the length of `memory`.
    pub size: u64,
    /// The largest size of the queue.
    pub queue_size: u16,
    /// What the flushes to come return.
    pub ret: u32,
    /// How many bytes of it they write.
    pub ret_len: usize,
    /// Flushes begun.
    pub flushes: u64,
}

impl FakePmem {
    /// `len` bytes of zeros, 6 GiB up.
    pub fn new(len: usize) -> Self {
        Self {
            memory: std::vec![0; len],
            persistent: std::vec![0; len],
            features: 0,
            start: 6 << 30,
            size: len as u64,
            queue_size: 128,
            ret: 0,
            ret_len: 4,
            flushes: 0,
        }
    }
}

impl DeviceModel for FakePmem {
    fn id(&self) -> DeviceId {
        DeviceId::PMEM
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        std::vec![self.queue_size]
    }

    fn config(&self) -> Vec<u8> {
        [self.start.to_le_bytes(), self.size.to_le_bytes()].concat()
    }

    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        let Some(request) = queues.pop(queue) else {
            return;
        };
        let mut kind = [0xff; 4];
        if request.read(0, &mut kind) < 4 || request.readable_len() != 4 || kind != [0; 4] {
            queues.violation("request that is no flush");
        }
        if request.writable_len() != 4 {
            queues.violation(std::format!("response of {} bytes", request.writable_len()));
        }
        self.flushes += 1;
        if self.ret == 0 {
            self.persistent.clone_from(&self.memory);
        }
        let ret = self.ret.to_le_bytes();
        let written = request.write(0, &ret[..self.ret_len.min(4)]);
        queues.push(queue, request, written as u32);
        if queues.pop(queue).is_some() {
            queues.violation("two requests at once: QEMU does one for each notification");
        }
    }
}
