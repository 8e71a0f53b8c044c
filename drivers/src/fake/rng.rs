//! [`FakeRng`]: an entropy device (spec 5.4) whose bytes are the same in every run.

use std::vec::Vec;

use super::device::{DeviceModel, Queues};
use super::random::Random;
use crate::device::DeviceId;

/// An entropy device. Its fields say how it answers and hold what it did; change them before the driver is made, or by
/// [`FakeDevice::with`](super::FakeDevice::with).
#[derive(Clone, Debug)]
pub struct FakeRng {
    /// The largest size of the queue.
    pub queue_size: u16,
    /// The most bytes that it says it wrote to a buffer.
    pub chunk: usize,
    /// Writes all of every buffer, whatever it says.
    pub scribbles: bool,
    /// The bytes that it said it wrote, in order.
    pub given: Vec<u8>,
    /// The lengths of the buffers that it was asked to fill.
    pub log: Vec<usize>,
    /// Where its bytes come from.
    pub source: Random,
}

impl FakeRng {
    /// One that fills each buffer.
    pub fn new() -> Self {
        Self {
            queue_size: 8,
            chunk: usize::MAX,
            scribbles: false,
            given: Vec::new(),
            log: Vec::new(),
            source: Random::new(4),
        }
    }
}

impl Default for FakeRng {
    fn default() -> Self {
        Self::new()
    }
}

impl DeviceModel for FakeRng {
    fn id(&self) -> DeviceId {
        DeviceId::RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        std::vec![self.queue_size]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn process(&mut self, queue: u16, queues: &mut Queues<'_>) {
        while let Some(request) = queues.pop(queue) {
            // Spec 5.4.6.1.
            if request.readable_len() != 0 {
                queues.violation("request that is not all for the device to write");
            }
            let len = request.writable_len();
            self.log.push(len);
            let mut bytes = std::vec![0; len];
            self.source.fill(&mut bytes);
            let given = len.min(self.chunk);
            if !self.scribbles {
                bytes.truncate(given);
            }
            request.write(0, &bytes);
            self.given.extend(bytes.iter().take(given));
            queues.push(queue, request, given as u32);
        }
    }
}
