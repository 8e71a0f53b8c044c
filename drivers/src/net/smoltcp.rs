//! [`Net`] as a `smoltcp` device.
//!
//! Frames are parsed where the device wrote them and composed where it reads them; a token holds no buffer until it is
//! consumed, so one that is dropped leaks nothing.
//!
//! Checksums of TCP and UDP are left to the device as far as it does them. Where smoltcp is told that it need not verify them, it is
//! done here for frames whose checksum the device does not vouch for: one that is wrong is dropped and counted. Datagrams in
//! fragments are smoltcp's own affair; 0.14.0 as published sends them without a checksum then, and does not verify it.
//!
//! With the feature `segmentation-offload`, smoltcp's TCP sends up to 64 KiB in one frame, for the device to cut; over IPv6 with
//! `segmentation-offload-ipv6`.
//!
//! After `Interface::poll`, call [`Net::flush`] or go to sleep in [`Net::poll_ready`], which does it: what was sent is
//! announced to the device once for the whole round.

use alloc::vec;
use core::num::NonZeroU16;
#[cfg(feature = "segmentation-offload")]
use core::num::NonZeroUsize;

use ::smoltcp::phy;
use ::smoltcp::time::Instant;
use ::smoltcp::wire::{EthernetAddress, HardwareAddress};

#[cfg(feature = "segmentation-offload")]
use super::SegmentKind;
use super::receive::RxFrame;
use super::transmit::Transmitter;
use super::wire::ETHERNET_HEADER_LEN;
use super::{Features, MacAddress, Net};
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
        // Without GUEST_CSUM it is smoltcp that verifies.
        let verify = self.verifies_checksums();
        let failure = &mut self.failure;
        let queues = &mut self.device.queues;
        let frame = match queues.receiver.receive(verify) {
            Ok(frame) => frame?,
            Err(error) => {
                failure.get_or_insert(error);
                return None;
            }
        };
        let transmitter = &mut queues.transmitter;
        Some((RxToken { frame }, TxToken::new(transmitter)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        let transmitter = &mut self.device.queues.transmitter;
        transmitter.has_room().then(|| TxToken::new(transmitter))
    }

    /// The longest frame is the MTU and an Ethernet header. A burst is bounded by the receive buffers: smoltcp uses it to
    /// keep a peer from sending more than there is room for.
    fn capabilities(&self) -> phy::DeviceCapabilities {
        let mut capabilities = phy::DeviceCapabilities::default();
        capabilities.medium = phy::Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu()) + ETHERNET_HEADER_LEN;
        capabilities.max_burst_size = Some(self.burst());
        let checksum = match (self.offloads_checksums(), self.verifies_checksums()) {
            (false, false) => phy::Checksum::Both,
            (false, true) => phy::Checksum::Tx,
            (true, false) => phy::Checksum::Rx,
            (true, true) => phy::Checksum::None,
        };
        capabilities.checksum.tcp = checksum;
        capabilities.checksum.udp = checksum;
        #[cfg(feature = "segmentation-offload")]
        {
            let longest = |kind| self.max_large_frame(kind).and_then(NonZeroUsize::new);
            capabilities.segmentation.tcpv4 = longest(SegmentKind::Tcp4);
            if cfg!(feature = "segmentation-offload-ipv6") {
                capabilities.segmentation.tcpv6 = longest(SegmentKind::Tcp6);
            }
        }
        capabilities
    }
}

impl<T: Transport> Net<T> {
    #[inline]
    fn verifies_checksums(&self) -> bool {
        self.device.negotiated().has(Features::GUEST_CSUM.bits())
    }

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
    meta: phy::PacketMeta,
}

impl<'a, T: Transport> TxToken<'a, T> {
    fn new(transmitter: &'a mut Transmitter<T>) -> Self {
        let meta = phy::PacketMeta::default();
        Self { transmitter, meta }
    }
}

impl<T: Transport> phy::TxToken for TxToken<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Ok(mut frame) = self.transmitter.reserve(len) else {
            // It was counted. smoltcp composes the frame all the same.
            return f(&mut vec![0; len]);
        };
        let result = f(&mut frame);
        match segment_size(&self.meta) {
            // A frame that can't be cut is too long to be sent, and is counted then.
            Some(size) => drop(frame.segment(size)),
            None => drop(frame.offload_checksum()),
        }
        // A queue that takes no frame is broken, was counted as well, and is reported by `Net::take_event`.
        let _ = frame.send();
        result
    }

    fn set_meta(&mut self, meta: phy::PacketMeta) {
        self.meta = meta;
    }
}

/// Into pieces of which size the device is to cut a frame.
#[cfg(feature = "segmentation-offload")]
fn segment_size(meta: &phy::PacketMeta) -> Option<NonZeroU16> {
    meta.segmentation_offload_size
}

/// smoltcp was not told that the device cuts frames, so it does not ask for it.
#[cfg(not(feature = "segmentation-offload"))]
fn segment_size(_: &phy::PacketMeta) -> Option<NonZeroU16> {
    None
}
