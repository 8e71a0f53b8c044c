//! The transmit queue: a pool of buffers, each filled in place, lent to the device and taken back when more are needed.

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};

use super::wire::{ETHERNET_HEADER_LEN, HEADER_LEN};
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

/// A transmit buffer on its way to the device and back. The first [`HEADER_LEN`] bytes are the header, which stays zero:
/// no offloads (spec 5.1.6.2.1). So a frame takes one descriptor.
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

/// The transmit queue.
pub(super) struct Transmitter<T: Transport> {
    queue: Queue<T, TransmitBuffer>,
    /// Buffers that are free. The one used last is on top, since it is the likeliest to be in the cache.
    pool: Vec<Buffer>,
    max_frame: usize,
    link_up: bool,
    /// Somebody found the pool empty and has not been told of room since.
    wanted: bool,
    interrupts: bool,
    stats: TransmitStats,
}

impl<T: Transport> Transmitter<T> {
    pub(super) fn new(
        transport: &mut T,
        index: u16,
        queue_size: u16,
        max_frame: usize,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let no_memory = Error::on_queue(transport.name(), index, Cause::NoMemory);
        let count = super::queue_size(transport, index, queue_size).into();
        let mut pool = Vec::new();
        pool.try_reserve_exact(count).map_err(|_| no_memory)?;
        for _ in 0..count {
            pool.push(Buffer::zeroed(HEADER_LEN + max_frame).ok_or(no_memory)?);
        }
        let options = QueueOptions {
            size: queue_size,
            ..QueueOptions::default()
        };
        let mut queue = Queue::allocate(transport, index, options, negotiated)?;
        // Buffers are taken back when the pool is empty, which needs no interrupt.
        queue.disable_interrupts();
        Ok(Self {
            queue,
            pool,
            max_frame,
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

    /// Whether a frame can be sent now. If not, whoever asked counts as waiting for room.
    #[inline]
    pub(super) fn has_room(&mut self) -> bool {
        if self.pool.is_empty() {
            // The device may be waiting to hear of what fills the queue.
            self.publish();
            self.reclaim();
        }
        self.wanted = self.pool.is_empty();
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
                Ok(Some(completion)) => self.pool.push(completion.payload.buffer),
                Ok(None) => return,
                // A broken queue takes no more frames, and says so itself.
                Err(_) => return,
            }
        }
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
        } else if len > self.max_frame {
            let cause = Cause::InvalidParameter("frame longer than the MTU allows");
            (&mut self.stats.too_long, cause)
        } else if self.has_room()
            && let Some(buffer) = self.pool.pop()
        {
            return Ok(TxFrame {
                transmitter: self,
                frame: Some(TransmitBuffer { buffer, len }),
            });
        } else {
            (&mut self.stats.full, Cause::QueueFull)
        };
        *counter += 1;
        Err(self.queue.error(cause))
    }

    fn submit(&mut self, frame: TransmitBuffer) -> Result<()> {
        let len = frame.len;
        match self.queue.submit(&[], frame) {
            Ok(_) => {
                self.stats.packets += 1;
                self.stats.bytes += len as u64;
                Ok(())
            }
            Err(rejected) => {
                self.pool.push(rejected.payload.buffer);
                self.stats.failed += 1;
                Err(rejected.error)
            }
        }
    }
}

/// A frame being written, in the memory that the device will read it from. It goes out with [`Self::send`]; dropped
/// before, it goes nowhere and its buffer is free again.
pub struct TxFrame<'a, T: Transport> {
    transmitter: &'a mut Transmitter<T>,
    /// There until the frame is sent.
    frame: Option<TransmitBuffer>,
}

impl<T: Transport> TxFrame<'_, T> {
    /// Hands the frame to the device, which learns of it with the next [`super::Net::flush`].
    ///
    /// # Errors
    ///
    /// [`Cause::QueueBroken`]: the device broke the rules of the queue, and must be restarted ([`super::Net::restart`]).
    /// The frame is counted as not sent.
    #[inline]
    pub fn send(mut self) -> Result<()> {
        match self.frame.take() {
            Some(frame) => self.transmitter.submit(frame),
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
            self.transmitter.pool.push(frame.buffer);
        }
    }
}

impl<T: Transport> fmt::Debug for TxFrame<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxFrame({} bytes)", self.len())
    }
}
