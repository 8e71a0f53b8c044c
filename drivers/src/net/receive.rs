//! The receive queue: buffers lent to the device for as long as the driver lives, and the frames that come in them.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use super::checksum::{self, Contents};
use super::config::Features;
use super::wire::{
    ETHERNET_HEADER_LEN, HEADER_LEN, Header, MAX_LARGE_FRAME, SegmentKind, Segmentation,
};
use crate::buffer::Buffer;
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{Chain, Payload, Queue, QueueOptions};
use crate::transport::Transport;

/// What the receive queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveStats {
    /// Frames handed out.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Frames of `packets` that came in several buffers and were copied together.
    pub merged: u64,
    /// Frames of `packets` that stand for several segments.
    pub large: u64,
    /// Frames of `packets` whose checksum the device vouches for.
    pub trusted: u64,
    /// Times the driver woke up and found that the device had no buffer left: it may have dropped frames.
    pub no_buffer: u64,
    /// Dropped: shorter than an Ethernet header.
    pub runt: u64,
    /// Dropped: longer than the MTU allows.
    pub too_long: u64,
    /// Dropped: the device claims more bytes than the buffer has.
    pub bad_length: u64,
    /// Dropped: no header, or one that describes an offload that was not agreed on or that can't be.
    pub bad_header: u64,
    /// Dropped: `num_buffers` is a lie, or a buffer of a merged frame was not filled.
    pub bad_merge: u64,
    /// Dropped by the adapter to a stack that leaves it to the driver to verify checksums: the checksum of TCP or UDP is wrong,
    /// and the device did not vouch for it.
    pub bad_checksum: u64,
}

impl ReceiveStats {
    /// All frames dropped by the driver.
    pub fn dropped(&self) -> u64 {
        let malformed = self.runt + self.too_long + self.bad_length;
        malformed + self.bad_header + self.bad_merge + self.bad_checksum
    }
}

/// A receive buffer on its way to the device and back.
pub(super) struct ReceiveBuffer(Buffer);

impl Payload for ReceiveBuffer {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        chain.writable(&mut self.0);
    }
}

/// How the receive queue is to be.
pub(super) struct ReceiveOptions {
    /// Descriptors.
    pub(super) queue_size: u16,
    /// The most buffers to lend.
    pub(super) buffers: u16,
    /// Length of each, header included.
    pub(super) buffer_len: usize,
    /// The longest frame that is taken, if it does not stand for several.
    pub(super) max_frame: usize,
}

/// The receive queue.
pub(super) struct Receiver<T: Transport> {
    queue: Queue<T, ReceiveBuffer>,
    /// Buffers that a broken queue did not take back.
    spare: Vec<ReceiveBuffer>,
    buffers: u16,
    buffer_len: usize,
    max_frame: usize,
    mergeable: bool,
    guest_csum: bool,
    /// Segments of which kinds a frame may stand for.
    tso4: bool,
    tso6: bool,
    /// A frame that came in several buffers, copied together.
    assembled: Vec<u8>,
    /// Buffers given back that the device doesn't know of yet.
    unpublished: u16,
    interrupts: bool,
    stats: ReceiveStats,
}

/// The device learns of buffers given back at the latest when it is a quarter of them, so that it does not run short
/// while a long burst is worked off.
const PUBLISH_SHARE: u16 = 4;

impl<T: Transport> Receiver<T> {
    pub(super) fn new(
        transport: &mut T,
        index: u16,
        options: &ReceiveOptions,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let no_memory = Error::on_queue(transport.name(), index, Cause::NoMemory);
        // Whatever can fail on our side fails before the device knows the queue.
        let size = super::queue_size(transport, index, options.queue_size);
        let count = usize::from(options.buffers.min(size));
        let mut spare = Vec::new();
        spare.try_reserve_exact(count).map_err(|_| no_memory)?;
        for _ in 0..count {
            let buffer = Buffer::zeroed(options.buffer_len).ok_or(no_memory)?;
            spare.push(ReceiveBuffer(buffer));
        }
        let has = |feature: Features| negotiated.has(feature.bits());
        let mergeable = has(Features::MRG_RXBUF);
        let (tso4, tso6) = (has(Features::GUEST_TSO4), has(Features::GUEST_TSO6));
        let mut assembled = Vec::new();
        if mergeable {
            let longest = match tso4 || tso6 {
                true => MAX_LARGE_FRAME,
                false => 0,
            };
            assembled
                .try_reserve_exact(options.max_frame.max(longest))
                .map_err(|_| no_memory)?;
        }
        let queue_options = QueueOptions {
            size: options.queue_size,
            ..QueueOptions::default()
        };
        let mut receiver = Self {
            queue: Queue::allocate(transport, index, queue_options, negotiated)?,
            spare,
            buffers: count as u16,
            buffer_len: options.buffer_len,
            max_frame: options.max_frame,
            mergeable,
            guest_csum: has(Features::GUEST_CSUM),
            tso4,
            tso6,
            assembled,
            unpublished: 0,
            interrupts: false,
            stats: ReceiveStats::default(),
        };
        receiver.queue.disable_interrupts();
        for _ in 0..count {
            // The queue has a descriptor for each.
            if let Some(buffer) = receiver.spare.pop() {
                receiver.give_back(buffer);
            }
        }
        Ok(receiver)
    }

    pub(super) fn queue(&self) -> &Queue<T, ReceiveBuffer> {
        &self.queue
    }

    pub(super) fn queue_mut(&mut self) -> &mut Queue<T, ReceiveBuffer> {
        &mut self.queue
    }

    pub(super) fn stats(&self) -> ReceiveStats {
        self.stats
    }

    pub(super) fn set_stats(&mut self, stats: ReceiveStats) {
        self.stats = stats;
    }

    /// How many buffers there are, and how long each is.
    pub(super) fn buffers(&self) -> (u16, usize) {
        (self.buffers, self.buffer_len)
    }

    /// Tells the device about the buffers given back.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.queue.kick();
        self.unpublished = 0;
    }

    /// Asks for an interrupt with the next frame; `true` if one is there already, and then interrupts stay off.
    pub(super) fn enable_interrupts(&mut self) -> bool {
        if self.queue.enable_interrupts() {
            self.queue.disable_interrupts();
            return true;
        }
        self.interrupts = true;
        false
    }

    /// The next frame, if one is found among as many buffers as there are. Dropped frames are given back while others are
    /// looked at, so a device that answers at once could otherwise keep the caller here for ever.
    ///
    /// With `verify` there are only frames among them whose checksum of TCP or UDP is right, or vouched for by the device.
    #[inline]
    pub(super) fn receive(&mut self, verify: bool) -> Result<Option<RxFrame<'_, T>>> {
        if self.interrupts {
            // While frames are being worked off, interrupts would only say what is known (spec 5.1.6.4).
            self.interrupts = false;
            self.queue.disable_interrupts();
            if self.queue.is_exhausted() {
                self.stats.no_buffer += 1;
            }
        }
        // Counted in buffers, since a merged frame takes several.
        let budget_end = self.queue.stats().completed + u64::from(self.buffers);
        while self.queue.stats().completed < budget_end
            && let Some(completion) = self.queue.poll(&mut [])?
        {
            let accepted = self.accept(completion.payload, completion.written)?;
            let (frame, state) = match accepted {
                Ok(accepted) => accepted,
                Err(dropped) => {
                    *dropped.counter(&mut self.stats) += 1;
                    continue;
                }
            };
            if verify && state.checksum == Checksum::Unknown {
                let bytes = frame.bytes(&self.assembled);
                if !Contents::of(bytes).is_credible(bytes) {
                    self.stats.bad_checksum += 1;
                    if let Frame::InPlace { buffer, .. } = frame {
                        self.give_back(buffer);
                    }
                    continue;
                }
            }
            self.stats.packets += 1;
            self.stats.bytes += frame.len() as u64;
            self.stats.merged += u64::from(matches!(frame, Frame::Assembled { .. }));
            self.stats.large += u64::from(state.segmentation.is_some());
            self.stats.trusted += u64::from(state.checksum != Checksum::Unknown);
            return Ok(Some(RxFrame {
                receiver: self,
                frame,
                state,
            }));
        }
        Ok(None)
    }

    /// Checks what came back against what was lent. A buffer that is not part of the result is back with the device.
    fn accept(
        &mut self,
        buffer: ReceiveBuffer,
        written: Result<u32, Cause>,
    ) -> Result<Result<(Frame, State), Dropped>> {
        let header = match written {
            Ok(written) => {
                let bytes = buffer.0.get(..written as usize);
                bytes.and_then(Header::parse).ok_or(Dropped::BadHeader)
            }
            Err(_) => Err(Dropped::BadLength),
        };
        let header = match header {
            Ok(header) => header,
            Err(dropped) => {
                self.give_back(buffer);
                return Ok(Err(dropped));
            }
        };
        let len = written.map_or(0, |written| written as usize) - HEADER_LEN;
        // Without MRG_RXBUF some devices leave the field 0.
        if self.mergeable && header.num_buffers != 1 {
            let whole = self.assemble(buffer, len, header.num_buffers)?;
            return Ok(whole.and_then(|frame| {
                let state = self.check(&header, frame.len())?;
                Ok((frame, state))
            }));
        }
        Ok(match self.check(&header, len) {
            Ok(state) => Ok((Frame::InPlace { buffer, len }, state)),
            Err(dropped) => {
                self.give_back(buffer);
                Err(dropped)
            }
        })
    }

    /// Judges what the device says about a frame of `len` bytes.
    #[inline]
    fn check(&self, header: &Header, len: usize) -> Result<State, Dropped> {
        let segmentation = match header.is_single() {
            true => None,
            false => Some(self.segmentation(header, len)?),
        };
        let max_frame = match segmentation {
            None => self.max_frame,
            Some(_) => MAX_LARGE_FRAME,
        };
        if len < ETHERNET_HEADER_LEN {
            return Err(Dropped::Runt);
        }
        if len > max_frame {
            return Err(Dropped::TooLong);
        }
        let checksum = match header.partial_checksum() {
            Some(partial) => {
                let (start, offset) = (partial.start.into(), partial.offset.into());
                // The field is behind the Ethernet header and in the frame.
                if !self.guest_csum || start < ETHERNET_HEADER_LEN || start + offset + 2 > len {
                    return Err(Dropped::BadHeader);
                }
                Checksum::Partial { start, offset }
            }
            None if segmentation.is_some() => return Err(Dropped::BadHeader),
            // Taps say so uninvited, too.
            None if self.guest_csum && header.is_data_valid() => Checksum::Valid,
            None => Checksum::Unknown,
        };
        Ok(State {
            checksum,
            segmentation,
        })
    }

    fn segmentation(&self, header: &Header, len: usize) -> Result<Segmentation, Dropped> {
        let segmentation = header.segmentation().ok_or(Dropped::BadHeader)?;
        let agreed = match segmentation.kind {
            SegmentKind::Tcp4 => self.tso4,
            SegmentKind::Tcp6 => self.tso6,
            SegmentKind::Udp => false,
        };
        match agreed && usize::from(segmentation.size.get()) < len {
            true => Ok(segmentation),
            false => Err(Dropped::BadHeader),
        }
    }

    /// Copies a frame of `num_buffers` buffers together, the first of which holds `len` bytes of it.
    fn assemble(
        &mut self,
        first: ReceiveBuffer,
        len: usize,
        num_buffers: u16,
    ) -> Result<Result<Frame, Dropped>> {
        self.assembled.clear();
        // A number that can't be true says nothing about the buffers that follow; a true one means that they all belong to
        // this frame and have to go with it, whatever is wrong with one of them.
        let plausible = (2..=self.buffers).contains(&num_buffers);
        let mut result = match first.0.get(HEADER_LEN..) {
            Some(part) if plausible && part.len() == len => self.append(part),
            _ => Err(Dropped::BadMerge),
        };
        self.give_back(first);
        let rest = if plausible { num_buffers - 1 } else { 0 };
        for left in (0..rest).rev() {
            // All buffers of a frame are used together (spec 5.1.6.4.1), so they are there, or the device lied.
            let Some(completion) = self.queue.poll(&mut [])? else {
                return Ok(Err(Dropped::BadMerge));
            };
            let buffer = completion.payload;
            result = result.and_then(|()| {
                let len = completion.written.map_err(|_| Dropped::BadLength)? as usize;
                match buffer.0.get(..len) {
                    // All but the last are filled.
                    Some(part) if left == 0 || len == buffer.0.len() => self.append(part),
                    _ => Err(Dropped::BadMerge),
                }
            });
            self.give_back(buffer);
        }
        Ok(result.map(|()| Frame::Assembled {
            len: self.assembled.len(),
        }))
    }

    fn append(&mut self, part: &[u8]) -> Result<(), Dropped> {
        // The capacity is what the longest frame needs.
        if self.assembled.len() + part.len() > self.assembled.capacity() {
            return Err(Dropped::TooLong);
        }
        self.assembled.extend_from_slice(part);
        Ok(())
    }

    /// Lends a buffer to the device again.
    #[inline]
    fn give_back(&mut self, buffer: ReceiveBuffer) {
        match self.queue.submit(&[], buffer) {
            Ok(_) => {
                self.unpublished += 1;
                if self.unpublished >= (self.buffers / PUBLISH_SHARE).max(1) {
                    self.publish();
                }
            }
            // A queue takes back as many as it gave, unless it is broken; then the buffer waits here for the end.
            Err(rejected) => self.spare.push(rejected.payload),
        }
    }
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    Runt,
    TooLong,
    BadLength,
    BadHeader,
    BadMerge,
}

impl Dropped {
    fn counter(self, stats: &mut ReceiveStats) -> &mut u64 {
        match self {
            Self::Runt => &mut stats.runt,
            Self::TooLong => &mut stats.too_long,
            Self::BadLength => &mut stats.bad_length,
            Self::BadHeader => &mut stats.bad_header,
            Self::BadMerge => &mut stats.bad_merge,
        }
    }
}

/// What is known of the checksum of TCP or UDP in a received frame (spec 5.1.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it has to be verified, if the frame has one. This is what all frames are without `GUEST_CSUM`.
    Unknown,
    /// The device verified it.
    Valid,
    /// The data is as it was sent, since it never was on a wire; but where its checksum should be, the frame has only the
    /// sum of the pseudo-header. Whoever needs all of it, such as one that forwards frames, calls
    /// [`RxFrame::finish_checksum`].
    Partial {
        /// Everything from here on is to be summed up.
        start: usize,
        /// Where the checksum belongs, from `start`.
        offset: usize,
    },
}

/// What the device did not do to a frame, or did.
#[derive(Clone, Copy, Debug)]
struct State {
    checksum: Checksum,
    segmentation: Option<Segmentation>,
}

/// Where the bytes of a frame are.
enum Frame {
    /// In the buffer that the device wrote, behind the header.
    InPlace { buffer: ReceiveBuffer, len: usize },
    /// In [`Receiver::assembled`]; the buffers are back with the device.
    Assembled { len: usize },
}

impl Frame {
    fn len(&self) -> usize {
        match self {
            Self::InPlace { len, .. } | Self::Assembled { len } => *len,
        }
    }

    #[inline]
    fn bytes<'a>(&'a self, assembled: &'a [u8]) -> &'a [u8] {
        let bytes = match self {
            Self::InPlace { buffer, len } => buffer.0.get(HEADER_LEN..HEADER_LEN + len),
            Self::Assembled { len } => assembled.get(..*len),
        };
        bytes.unwrap_or_default()
    }
}

/// A received Ethernet frame, read in place. Dropping it lends its buffer to the device again.
///
/// What the device may leave to the driver ([`Features`]) is left to whoever takes the frame: [`Self::checksum`] and
/// [`Self::segmentation`] say what that is. Who can't deal with it declines the features
/// ([`Options::declined`](super::Options::declined)).
pub struct RxFrame<'a, T: Transport> {
    receiver: &'a mut Receiver<T>,
    frame: Frame,
    state: State,
}

impl<T: Transport> RxFrame<'_, T> {
    /// What is known of the checksum of the TCP segment or UDP datagram in it.
    #[inline]
    pub fn checksum(&self) -> Checksum {
        self.state.checksum
    }

    /// Whether that checksum is right: known to be, or else computed. True for frames of other protocols and for fragments,
    /// whose checksums are not looked at.
    pub fn has_valid_checksum(&self) -> bool {
        self.state.checksum != Checksum::Unknown || Contents::of(self).is_credible(self)
    }

    /// The segments that the frame stands for, if there are several: it is longer than the MTU allows then.
    #[inline]
    pub fn segmentation(&self) -> Option<Segmentation> {
        self.state.segmentation
    }

    /// Finishes a checksum that is [`Checksum::Partial`]; it is [`Checksum::Valid`] afterwards. If the frame stands for
    /// several segments, it is the one that a single one of that length would have.
    pub fn finish_checksum(&mut self) {
        let Checksum::Partial { start, offset } = self.state.checksum else {
            return;
        };
        let bytes = match &mut self.frame {
            Frame::InPlace { buffer, len } => buffer.0.get_mut(HEADER_LEN..HEADER_LEN + *len),
            Frame::Assembled { len } => self.receiver.assembled.get_mut(..*len),
        };
        checksum::finish(bytes.unwrap_or_default(), start, offset);
        self.state.checksum = Checksum::Valid;
    }
}

impl<T: Transport> Deref for RxFrame<'_, T> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.frame.bytes(&self.receiver.assembled)
    }
}

impl<T: Transport> Drop for RxFrame<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let gone = Frame::Assembled { len: 0 };
        if let Frame::InPlace { buffer, .. } = core::mem::replace(&mut self.frame, gone) {
            self.receiver.give_back(buffer);
        }
    }
}

impl<T: Transport> fmt::Debug for RxFrame<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxFrame({} bytes)", self.len())
    }
}
