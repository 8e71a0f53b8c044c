//! [`Net`] as a `smoltcp` device.
//!
//! Frames are parsed where the device wrote them and composed where it reads them; a token holds no buffer until it is
//! consumed, so one that is dropped leaks nothing.
//!
//! After `Interface::poll`, call [`Net::flush`] or go to sleep in [`Net::poll_ready`], which does it: what was sent is
//! announced to the device once for the whole round.

use alloc::vec;

use ::smoltcp::phy;
use ::smoltcp::time::Instant;
use ::smoltcp::wire::{EthernetAddress, HardwareAddress};

use super::receive::RxFrame;
use super::transmit::Transmitter;
use super::wire::ETHERNET_HEADER_LEN;
use super::{MacAddress, Net};
use crate::transport::Transport;

impl From<MacAddress> for HardwareAddress {
    fn from(address: MacAddress) -> Self {
        Self::Ethernet(EthernetAddress(address.0))
    }
}

impl<T: Transport> phy::Device for Net<T> {
    type RxToken<'a>
        = RxToken<'a, T>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a, T>
    where
        Self: 'a;

    /// `None` also when the device broke the rules; [`Net::take_event`] tells of it.
    ///
    /// A frame is taken even when nothing can be sent, in which case an answer to it is dropped and counted. Waiting for
    /// room instead could make two peers wait for each other.
    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let failure = &mut self.failure;
        let queues = &mut self.device.queues;
        let frame = match queues.receiver.receive() {
            Ok(frame) => frame?,
            Err(error) => {
                failure.get_or_insert(error);
                return None;
            }
        };
        let transmitter = &mut queues.transmitter;
        Some((RxToken { frame }, TxToken { transmitter }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        let transmitter = &mut self.device.queues.transmitter;
        transmitter.has_room().then_some(TxToken { transmitter })
    }

    /// The longest frame is the MTU and an Ethernet header. A burst is bounded by the receive buffers: smoltcp uses it to
    /// keep a peer from sending more than there is room for. No checksum is left to the device.
    fn capabilities(&self) -> phy::DeviceCapabilities {
        let mut capabilities = phy::DeviceCapabilities::default();
        capabilities.medium = phy::Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu()) + ETHERNET_HEADER_LEN;
        capabilities.max_burst_size = Some(self.burst());
        capabilities
    }
}

impl<T: Transport> Net<T> {
    /// How many frames of full length the receive buffers hold.
    fn burst(&self) -> usize {
        let (count, len) = self.receive_buffers();
        let frame = super::HEADER_LEN + usize::from(self.mtu()) + ETHERNET_HEADER_LEN;
        (usize::from(count) / frame.div_ceil(len)).max(1)
    }
}

/// A frame that came in.
#[derive(Debug)]
pub struct RxToken<'a, T: Transport> {
    frame: RxFrame<'a, T>,
}

impl<T: Transport> phy::RxToken for RxToken<'_, T> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.frame)
    }
}

/// Leave to send a frame.
pub struct TxToken<'a, T: Transport> {
    transmitter: &'a mut Transmitter<T>,
}

impl<T: Transport> phy::TxToken for TxToken<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Ok(mut frame) = self.transmitter.reserve(len) else {
            // It was counted. smoltcp composes the frame all the same.
            return f(&mut vec![0; len]);
        };
        let result = f(&mut frame);
        // A queue that takes no frame is broken, was counted as well, and is reported by `Net::take_event`.
        let _ = frame.send();
        result
    }
}
