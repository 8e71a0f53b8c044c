//! The device of `lo`: what is sent comes back. (smoltcp's own does not tell whether something is under way, so its
//! owner would not know when to sleep, and it takes any number of packets.)

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

const MTU: usize = 65535;
const MAX_PACKETS: usize = 256;

/// Packets on their way back.
#[derive(Default)]
pub struct Loopback {
    packets: VecDeque<Vec<u8>>,
}

impl Loopback {
    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

impl Device for Loopback {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let packet = self.packets.pop_front()?;
        Some((RxToken(packet), TxToken(&mut self.packets)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        (self.packets.len() < MAX_PACKETS).then_some(TxToken(&mut self.packets))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // Nothing happens to a packet that never leaves memory.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

/// A packet that came back.
pub struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Leave to send a packet.
pub struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
