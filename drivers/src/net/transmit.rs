//! The transmit queue: two pools of buffers, each filled in place, lent to the device and taken back when more are needed.
//!
//! Most buffers hold a frame of the MTU. A few hold one that stands for as many segments as an IP packet can.

use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU16;
use core::ops::{Deref, DerefMut};

use super::checksum::{Contents, Protocol, Segment};
use super::config::Features;
use super::wire::{
    ETHERNET_HEADER_LEN, HEADER_LEN, MAX_LARGE_FRAME, Offload, PartialChecksum, SegmentKind,
    Segmentation,
};
use crate::buffer::Buffer;
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{Chain, Payload, Queue, QueueOptions};
use crate::transport::Transport;

/// What the transmit queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitStats {
    /// Frames given to the device.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Frames of `packets` that stand for several segments.
    pub large: u64,
    /// Frames of `packets` whose checksum was left to the device.
    pub partial: u64,
    /// Not sent: all buffers were with the device.
    pub full: u64,
    /// Not sent: the link was down.
    pub link_down: u64,
    /// Not sent: shorter than an Ethernet header.
    pub runt: u64,
    /// Not sent: longer than the MTU allows.
    pub too_long: u64,
    /// Not sent: the queue is broken.
    pub failed: u64,
}

impl TransmitStats {
    /// All frames that were not sent.
    pub fn dropped(&self) -> u64 {
        self.full + self.link_down + self.runt + self.too_long + self.failed
    }
}

/// A transmit buffer on its way to the device and back. The first [`HEADER_LEN`] bytes are the header, so a frame takes one
/// descriptor.
pub(super) struct TransmitBuffer {
    buffer: Buffer,
    /// Length of the frame, without the header.
    len: usize,
}

impl Payload for TransmitBuffer {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        chain.readable_part(&self.buffer, 0..HEADER_LEN + self.len);
    }
}

/// How the transmit queue is to be.
pub(super) struct TransmitOptions {
    /// Descriptors.
    pub(super) queue_size: u16,
    /// Buffers for frames that stand for several segments; no more than every second one.
    pub(super) large_buffers: u16,
    /// The longest frame that does not.
    pub(super) max_frame: usize,
}

/// The transmit queue.
pub(super) struct Transmitter<T: Transport> {
    queue: Queue<T, TransmitBuffer>,
    /// Buffers that are free. The one used last is on top, since it is the likeliest to be in the cache.
    pool: Vec<Buffer>,
    large_pool: Vec<Buffer>,
    max_frame: usize,
    /// 0 if there are no large buffers.
    max_large_frame: usize,
    offloads: Offloads,
    link_up: bool,
    /// Somebody found a pool empty and has not been told of room since.
    wanted: bool,
    interrupts: bool,
    stats: TransmitStats,
}

/// What can be left to the device.
#[derive(Clone, Copy)]
struct Offloads {
    checksum: bool,
    tso4: bool,
    tso6: bool,
    uso: bool,
}

impl Offloads {
    fn new(negotiated: Negotiated) -> Self {
        let has = |feature: Features| negotiated.has(feature.bits());
        Self {
            checksum: has(Features::CSUM),
            tso4: has(Features::HOST_TSO4),
            tso6: has(Features::HOST_TSO6),
            uso: has(Features::HOST_USO),
        }
    }

    fn cuts(self, kind: SegmentKind) -> bool {
        match kind {
            SegmentKind::Tcp4 => self.tso4,
            SegmentKind::Tcp6 => self.tso6,
            SegmentKind::Udp => self.uso,
        }
    }
}

/// `count` buffers for frames of up to `max_frame` bytes; `None` if there is no memory for them.
fn pool(count: usize, max_frame: usize) -> Option<Vec<Buffer>> {
    let mut pool = Vec::new();
    pool.try_reserve_exact(count).ok()?;
    for _ in 0..count {
        pool.push(Buffer::zeroed(HEADER_LEN + max_frame)?);
    }
    Some(pool)
}

impl<T: Transport> Transmitter<T> {
    pub(super) fn new(
        transport: &mut T,
        index: u16,
        options: &TransmitOptions,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let no_memory = Error::on_queue(transport.name(), index, Cause::NoMemory);
        let count = usize::from(super::queue_size(transport, index, options.queue_size));
        // Each buffer has a descriptor, large or not.
        let large = usize::from(options.large_buffers).min(count / 2);
        let small_pool = pool(count - large, options.max_frame).ok_or(no_memory)?;
        let large_pool = pool(large, MAX_LARGE_FRAME).ok_or(no_memory)?;
        let queue_options = QueueOptions {
            size: options.queue_size,
            ..QueueOptions::default()
        };
        let mut queue = Queue::allocate(transport, index, queue_options, negotiated)?;
        // Buffers are taken back when a pool is empty, which needs no interrupt.
        queue.disable_interrupts();
        Ok(Self {
            queue,
            pool: small_pool,
            large_pool,
            max_frame: options.max_frame,
            max_large_frame: if large > 0 { MAX_LARGE_FRAME } else { 0 },
            offloads: Offloads::new(negotiated),
            link_up: true,
            wanted: false,
            interrupts: false,
            stats: TransmitStats::default(),
        })
    }

    pub(super) fn queue(&self) -> &Queue<T, TransmitBuffer> {
        &self.queue
    }

    pub(super) fn queue_mut(&mut self) -> &mut Queue<T, TransmitBuffer> {
        &mut self.queue
    }

    pub(super) fn stats(&self) -> TransmitStats {
        self.stats
    }

    pub(super) fn set_stats(&mut self, stats: TransmitStats) {
        self.stats = stats;
    }

    pub(super) fn set_link(&mut self, up: bool) {
        self.link_up = up;
    }

    /// Tells the device about the frames submitted.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.queue.kick();
    }

    /// Whether checksums are left to the device.
    pub(super) fn offloads_checksums(&self) -> bool {
        self.offloads.checksum
    }

    /// The longest frame of segments of this kind, if the device cuts such.
    pub(super) fn max_large_frame(&self, kind: SegmentKind) -> Option<usize> {
        // The length field of an IPv4 packet counts its header, too.
        let longest = match kind {
            SegmentKind::Tcp6 => self.max_large_frame,
            SegmentKind::Tcp4 | SegmentKind::Udp => {
                self.max_large_frame.min(ETHERNET_HEADER_LEN + 65535)
            }
        };
        (self.offloads.cuts(kind) && longest > 0).then_some(longest)
    }

    /// There are no large buffers at all, or not for the moment.
    #[inline]
    fn lacks_large(&self) -> bool {
        self.max_large_frame > 0 && self.large_pool.is_empty()
    }

    /// Whether a frame can be sent now, however long. If not, whoever asked counts as waiting for room.
    #[inline]
    pub(super) fn has_room(&mut self) -> bool {
        let lacking = |this: &Self| this.pool.is_empty() || this.lacks_large();
        if lacking(self) {
            // The device may be waiting to hear of what fills the queue.
            self.publish();
            self.reclaim();
        }
        self.wanted = lacking(self);
        if self.interrupts && !self.wanted {
            self.interrupts = false;
            self.queue.disable_interrupts();
        }
        !self.wanted
    }

    /// Whether somebody waits for room.
    pub(super) fn is_waited_for(&self) -> bool {
        self.wanted
    }

    /// Somebody waited for room, and there is some now.
    pub(super) fn room_came(&mut self) -> bool {
        self.wanted && self.has_room()
    }

    /// If somebody waits for room: asks for an interrupt when there is plenty. `true` if there is room already.
    pub(super) fn enable_interrupts_if_wanted(&mut self) -> bool {
        if !self.wanted {
            return false;
        }
        let plenty = self.queue.in_flight() / 4 * 3;
        self.queue.enable_interrupts_after(plenty);
        self.interrupts = true;
        self.has_room()
    }

    /// Takes back the buffers that the device is done with: no more than it had when this began, since none is given to
    /// it meanwhile.
    fn reclaim(&mut self) {
        loop {
            match self.queue.poll(&mut []) {
                // How much the device claims to have written to what it may only read changes nothing here.
                Ok(Some(completion)) => self.put_back(completion.payload.buffer),
                Ok(None) => return,
                // A broken queue takes no more frames, and says so itself.
                Err(_) => return,
            }
        }
    }

    #[inline]
    fn put_back(&mut self, buffer: Buffer) {
        match buffer.len() > HEADER_LEN + self.max_frame {
            true => self.large_pool.push(buffer),
            false => self.pool.push(buffer),
        }
    }

    /// A buffer for a frame of `len` bytes, if one is free.
    #[inline]
    fn take(&mut self, len: usize) -> Option<Buffer> {
        let large = len > self.max_frame;
        let pool = |this: &mut Self| match large {
            true => this.large_pool.pop(),
            false => this.pool.pop(),
        };
        // A frame of the other kind may have no room, but that is what the next one to ask for it waits for.
        pool(self).or_else(|| {
            self.has_room();
            pool(self)
        })
    }

    /// Frames that the device has, or will be told of, and is not done with.
    pub(super) fn unsent(&mut self) -> u16 {
        self.publish();
        self.reclaim();
        self.queue.in_flight()
    }

    /// A buffer for a frame of `len` bytes. What the buffer holds is left over from an earlier frame.
    #[inline]
    pub(super) fn reserve(&mut self, len: usize) -> Result<TxFrame<'_, T>> {
        let (counter, cause) = if !self.link_up {
            (&mut self.stats.link_down, Cause::LinkDown)
        } else if len < ETHERNET_HEADER_LEN {
            let cause = Cause::InvalidParameter("frame shorter than an Ethernet header");
            (&mut self.stats.runt, cause)
        } else if len > self.max_frame.max(self.max_large_frame) {
            let cause = Cause::InvalidParameter("frame longer than the MTU allows");
            (&mut self.stats.too_long, cause)
        } else if let Some(buffer) = self.take(len) {
            return Ok(TxFrame {
                transmitter: self,
                frame: Some(TransmitBuffer { buffer, len }),
                offload: Offload::default(),
            });
        } else {
            (&mut self.stats.full, Cause::QueueFull)
        };
        *counter += 1;
        Err(self.queue.error(cause))
    }

    #[inline]
    fn submit(&mut self, mut frame: TransmitBuffer, offload: &Offload) -> Result<()> {
        let len = frame.len;
        if len > self.max_frame && offload.segmentation.is_none() {
            self.put_back(frame.buffer);
            self.stats.too_long += 1;
            let cause = Cause::InvalidParameter("frame longer than the MTU allows");
            return Err(self.queue.error(cause));
        }
        if let Some(header) = frame.buffer.first_chunk_mut() {
            *header = offload.encode();
        }
        match self.queue.submit(&[], frame) {
            Ok(_) => {
                self.stats.packets += 1;
                self.stats.bytes += len as u64;
                self.stats.large += u64::from(offload.segmentation.is_some());
                self.stats.partial += u64::from(offload.checksum.is_some());
                Ok(())
            }
            Err(rejected) => {
                self.put_back(rejected.payload.buffer);
                self.stats.failed += 1;
                Err(rejected.error)
            }
        }
    }
}

/// A frame being written, in the memory that the device will read it from. It goes out with [`Self::send`]; dropped
/// before, it goes nowhere and its buffer is free again.
///
/// It goes out as it is, unless [`Self::offload_checksum`] or [`Self::segment`] said otherwise, which look at what is in the
/// frame and so come last.
pub struct TxFrame<'a, T: Transport> {
    transmitter: &'a mut Transmitter<T>,
    /// There until the frame is sent.
    frame: Option<TransmitBuffer>,
    offload: Offload,
}

impl<T: Transport> TxFrame<'_, T> {
    /// Leaves the checksum of the TCP segment or UDP datagram in the frame to the device, whatever is in its place. Says whether
    /// that is so: not without `CSUM`, nor with a frame of another protocol or a fragment, whose checksums must be there.
    #[inline]
    pub fn offload_checksum(&mut self) -> bool {
        let contents = match self.transmitter.offloads.checksum {
            true => Contents::of(self),
            false => Contents::Other,
        };
        match contents {
            Contents::Segment(segment) => self.begin_checksum(&segment),
            Contents::Other | Contents::Malformed => false,
        }
    }

    /// False if a header can't say where it is, behind 64 KiB of extension headers.
    #[inline]
    fn begin_checksum(&mut self, segment: &Segment) -> bool {
        let Ok(start) = u16::try_from(segment.start) else {
            return false;
        };
        segment.begin(self);
        self.offload.checksum = Some(PartialChecksum {
            start,
            offset: segment.checksum_offset() as u16,
        });
        true
    }

    /// Has the device cut the TCP segment or UDP datagram in the frame into several, each with up to `size` bytes of its payload
    /// and with headers like those of the frame. Checksums are left to the device, too. A frame that need not be cut stays
    /// whole.
    ///
    /// # Errors
    ///
    /// [`Cause::Unsupported`] without `HOST_TSO4`, `HOST_TSO6` or `HOST_USO`, whichever the frame needs, or
    /// [`Cause::InvalidParameter`] if it can't be cut, or its segments would be longer than the MTU allows. Nothing is
    /// different then.
    pub fn segment(&mut self, size: NonZeroU16) -> Result<()> {
        let (segment, headers) = match Contents::of(self) {
            Contents::Segment(segment) => (segment, segment.payload(self)),
            _ => return Err(self.invalid("frame with nothing to cut")),
        };
        let kind = match (segment.protocol, segment.ipv6) {
            (Protocol::Tcp, false) => SegmentKind::Tcp4,
            (Protocol::Tcp, true) => SegmentKind::Tcp6,
            (Protocol::Udp, _) => SegmentKind::Udp,
        };
        if !self.transmitter.offloads.cuts(kind) {
            return Err(self.transmitter.queue.error(Cause::Unsupported));
        }
        let Some(headers) = headers else {
            return Err(self.invalid("header longer than its packet"));
        };
        let each = headers + usize::from(size.get());
        if each > self.transmitter.max_frame {
            return Err(self.invalid("segments longer than the MTU allows"));
        }
        // All but the headers' bytes have room in a frame of less than 64 KiB, so a number of 16 bits says how many they are.
        if self.begin_checksum(&segment) && segment.end > each {
            self.offload.segmentation = Some((Segmentation { kind, size }, headers as u16));
        }
        Ok(())
    }

    fn invalid(&self, what: &'static str) -> Error {
        let queue = &self.transmitter.queue;
        queue.error(Cause::InvalidParameter(what))
    }

    /// Hands the frame to the device, which learns of it with the next [`super::Net::flush`].
    ///
    /// # Errors
    ///
    /// [`Cause::InvalidParameter`]: it is longer than the MTU allows, and was not to be cut.
    /// [`Cause::QueueBroken`]: the device broke the rules of the queue, and must be restarted ([`super::Net::restart`]).
    /// The frame is counted as not sent.
    #[inline]
    pub fn send(mut self) -> Result<()> {
        match self.frame.take() {
            Some(frame) => self.transmitter.submit(frame, &self.offload),
            None => Ok(()),
        }
    }
}

impl<T: Transport> Deref for TxFrame<'_, T> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let frame = self.frame.as_ref();
        frame
            .and_then(|frame| frame.buffer.get(HEADER_LEN..HEADER_LEN + frame.len))
            .unwrap_or_default()
    }
}

impl<T: Transport> DerefMut for TxFrame<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let frame = self.frame.as_mut();
        frame
            .and_then(|frame| frame.buffer.get_mut(HEADER_LEN..HEADER_LEN + frame.len))
            .unwrap_or_default()
    }
}

impl<T: Transport> Drop for TxFrame<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.transmitter.put_back(frame.buffer);
        }
    }
}

impl<T: Transport> fmt::Debug for TxFrame<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxFrame({} bytes)", self.len())
    }
}
