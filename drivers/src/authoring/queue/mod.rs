//! The virtqueue (spec 2.6): requests go in, completions come out.
//!
//! A [`Queue`] owns what a request lends to the device until the device is done with it, keeps its own account of what is
//! in flight, and checks every number that the device writes against that account, once, in [`Queue::poll`].
//!
//! A request is a chain of segments:
//!
//! | segment | direction | whose memory |
//! |---|---|---|
//! | header | device reads | the queue's own, one slot per request |
//! | [`Payload::segments`], readable | device reads | the caller's [`Buffer`]s |
//! | [`Payload::segments`], writable | device writes | the caller's [`Buffer`]s |
//! | footer | device writes | the queue's own |
//!
//! Header and footer are what most device types wrap around their data: `struct virtio_blk_req` begins with one and ends
//! with the other. Either may have length 0.

mod chain;
mod record;
mod ring;
#[expect(unsafe_code, reason = "vouches for the loans that payloads make")]
mod slot;

use alloc::vec::Vec;
use core::fmt;
use core::task::Waker;

use self::record::{Places, Record, Shape};
use self::ring::Ring;
use self::slot::{Slot, State};
use crate::device::DeviceName;
use crate::dma::{self, DmaContext, Lent};
use crate::error::{Cause, Error, Result};
use crate::features::{Negotiated, RingFeatures};
use crate::report::QueueReport;
use crate::transport::{Moment, Notifier, QueueMemory, Quiesced, Transport};

pub use self::chain::{Chain, Payload};
#[cfg(doc)]
use crate::buffer::Buffer;

/// The largest queue that the specification allows (spec 2.6).
pub const MAX_SIZE: u16 = 32768;

/// How a driver wants one of its queues.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Number of descriptors, a power of two; the device's maximum if that is smaller.
    pub size: u16,
    /// The most bytes that a request may begin with, for the device to read, in the queue's own memory.
    pub header_len: usize,
    /// Bytes that every request ends with, for the device to write.
    pub footer_len: usize,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            size: 256,
            header_len: 0,
            footer_len: 0,
        }
    }
}

/// Names a request from its submission until it is taken back: a number below the queue's size that no other request has
/// meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u16);

impl Token {
    /// For a driver whose requests are no descriptor chains but made of several.
    pub(crate) fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number, for use as an index into a table with an entry per descriptor.
    #[inline]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// The name of a request that the device is done with, and that keeps its place until it is taken.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Which one.
    pub token: Token,
    /// Who is to be told, if that was said.
    pub waker: Option<Waker>,
}

/// A request that the device is done with.
#[derive(Debug)]
pub struct Completion<P> {
    /// Which one.
    pub token: Token,
    /// What was submitted.
    pub payload: P,
    /// How many bytes the device says it wrote, footer included; an error if that is more than there was room for, in
    /// which case nothing should be believed but a footer that can't be what was there before.
    pub written: core::result::Result<u32, Cause>,
    /// The first eight bytes of the footer, little-endian; those beyond its end mean nothing.
    pub footer: u64,
}

/// A request that the device is done with and that keeps its place in the queue: see [`Completion`].
#[derive(Debug)]
pub struct Done<'a, P> {
    /// What was submitted.
    pub payload: &'a mut P,
    /// As in [`Completion`].
    pub written: core::result::Result<u32, Cause>,
    /// How many bytes there was room for, footer included.
    pub room: u32,
    /// As in [`Completion`].
    pub footer: u64,
}

/// A request that was not taken, handed back.
#[derive(Debug)]
pub struct Rejected<P> {
    /// Why. [`Cause::QueueFull`] means: poll, then try again.
    pub error: Error,
    /// What was submitted.
    pub payload: P,
}

impl<P> fmt::Display for Rejected<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<P: fmt::Debug> core::error::Error for Rejected<P> {}

impl<P> From<Rejected<P>> for Error {
    fn from(rejected: Rejected<P>) -> Self {
        rejected.error
    }
}

/// What a queue did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Requests made available to the device.
    pub submitted: u64,
    /// Requests that came back.
    pub completed: u64,
    /// Notifications sent: each is an exit from the guest.
    pub kicks: u64,
    /// Notifications that the device had said it did not need.
    pub kicks_saved: u64,
    /// Interrupts that the owner counted with [`Queue::count_interrupt`].
    pub interrupts: u64,
    /// Completions that claimed something impossible.
    pub violations: u64,
    /// What the first of them claimed. It is not in the log, since a queue is polled under its owner's lock, and who writes the
    /// log may need that device for it.
    pub first_violation: Option<Cause>,
}

impl QueueStats {
    /// Counts a completion that claimed something impossible. Some devices do that with each.
    #[cold]
    fn count(&mut self, claim: Cause) {
        self.violations += 1;
        self.first_violation.get_or_insert(claim);
    }
}

/// A virtqueue whose requests carry payloads of type `P`.
pub struct Queue<T: Transport, P> {
    device: DeviceName,
    index: u16,
    dma: T::Dma,
    ring: Ring<T::Dma>,
    /// There once the queue was enabled.
    bell: Option<T::Notifier>,
    /// The place of each request, by its id.
    slots: Vec<Slot<P, T::Dma>>,
    /// The first free slot's id, or the queue's size if there is none.
    free: u16,
    in_flight: u16,
    places: Places,
    /// The device may access ring and buffers.
    live: bool,
    /// Which transport's device it is.
    instance: Moment,
    /// When the queue was made, and then when the device was told of it.
    enabled: Moment,
    broken: bool,
    /// What the device did to break it.
    violation: Option<Cause>,
    /// All but the number of requests submitted, which follows from those that came back and are in flight.
    stats: QueueStats,
    /// How many requests came back by a reset.
    released: u64,
}

impl<T: Transport, P: Payload> Queue<T, P> {
    /// Makes queue `index` of the device and enables it (spec 3.1.1 step 7): [`Self::allocate`] and [`Self::enable`].
    ///
    /// # Errors
    ///
    /// As for these two. The memory of a queue that the device refused is leaked; with these two it can be released.
    pub fn new(
        transport: &mut T,
        index: u16,
        options: QueueOptions,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let mut queue = Self::allocate(transport, index, options, negotiated)?;
        queue.enable(transport)?;
        Ok(queue)
    }

    /// Makes queue `index` of the device, which learns of it by [`Self::enable`]. What is submitted before waits for that.
    ///
    /// # Errors
    ///
    /// No such queue, a size that is not a power of two up to [`MAX_SIZE`], or no memory.
    pub fn allocate(
        transport: &mut T,
        index: u16,
        options: QueueOptions,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let device = transport.name();
        let fail = |cause| Error::on_queue(device, index, cause);
        let max = transport.queue_max_size(index);
        if max == 0 {
            return Err(fail(Cause::NoSuchQueue));
        }
        let bad_size = fail(Cause::QueueSize {
            size: options.size.into(),
            max: max.into(),
        });
        if !options.size.is_power_of_two() || options.size > MAX_SIZE {
            return Err(bad_size);
        }
        let size = Ring::<T::Dma>::fit(options.size, max).ok_or(bad_size)?;
        let dma = transport.dma().clone();
        let indirect = negotiated.has(RingFeatures::INDIRECT_DESC.bits());
        let places = Places::new(options, indirect).map_err(fail)?;
        let ring = Ring::new(&dma, size, negotiated, places.len).map_err(fail)?;
        let mut slots = Vec::new();
        slots
            .try_reserve_exact(size.into())
            .map_err(|_| fail(Cause::NoMemory))?;
        for id in 0..size {
            let at = usize::from(id) * places.len;
            let entries = ring.records().part(at..at + places.len);
            let entries = entries.ok_or_else(|| fail(Cause::NoDmaMemory))?;
            slots.push(Slot::free(id + 1, Record::new(entries)));
        }
        Ok(Self {
            device,
            index,
            dma,
            ring,
            bell: None,
            slots,
            free: 0,
            in_flight: 0,
            places,
            live: false,
            instance: transport.instance().number(),
            enabled: Moment::now(),
            broken: false,
            violation: None,
            stats: QueueStats::default(),
            released: 0,
        })
    }

    /// Tells the device of the queue, of which [`Self::allocate`] was told that it is the device's.
    ///
    /// # Errors
    ///
    /// [`Cause::InvalidParameter`] for a queue of another device or one made before the device was last reset, or whatever
    /// [`Transport::enable_queue`] says: [`Cause::QueueInUse`] for a queue that was enabled before. A device that refused the
    /// queue ([`Cause::QueueRefused`]) keeps its memory until it was reset, like any that has a queue.
    pub fn enable(&mut self, transport: &mut T) -> Result<()> {
        if transport.instance().number() != self.instance {
            return Err(self.error(Cause::InvalidParameter("queue of another device")));
        }
        // What was agreed on then about addresses need not hold any more.
        if transport.instance().was_reset_since(self.enabled) {
            let cause = Cause::InvalidParameter("queue of before a reset");
            return Err(self.error(cause));
        }
        let memory = QueueMemory::new(self.ring.addresses());
        let enabled = transport.enable_queue(self.index, &memory);
        // A device that was told where the queue is may use it, whatever it says.
        let told = match &enabled {
            Ok(_) => true,
            Err(error) => error.cause == Cause::QueueRefused,
        };
        if told {
            self.enabled = Moment::now();
            self.live = true;
        }
        self.bell = Some(enabled?);
        Ok(())
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The queue's index on its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Requests with the device or made available to it.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Whether a request of `segments` segments, header and footer included, would be taken now.
    pub fn has_room(&self, segments: usize) -> bool {
        self.free < self.size() && self.ring.has_room(|| segments)
    }

    /// The most segments that one request may have, header and footer included (spec 2.7.5: no more than the queue
    /// size, indirect or not).
    pub fn max_segments(&self) -> usize {
        self.ring.size().into()
    }

    /// Counters since the queue was made.
    pub fn stats(&self) -> QueueStats {
        let submitted = self.stats.completed + self.released + u64::from(self.in_flight);
        QueueStats {
            submitted,
            ..self.stats
        }
    }

    /// The queue's part of a [`crate::Report`], under the name that the device type gives it.
    pub fn report(&self, name: &'static str) -> QueueReport {
        QueueReport {
            name,
            index: self.index,
            size: self.size(),
            in_flight: self.in_flight,
            stats: self.stats(),
        }
    }

    /// Counts an interrupt that was meant for this queue.
    pub fn count_interrupt(&mut self) {
        self.stats.interrupts += 1;
    }

    /// Hands a request to the queue. The device learns of it with the next [`Self::kick`]; several requests can share
    /// one.
    ///
    /// `header` is at most as long as the queue was made for; with an empty one the request begins with the payload.
    ///
    /// # Errors
    ///
    /// The payload comes back if it has no segments or an empty one, readable segments behind writable ones, more
    /// segments than the queue has descriptors, 4 GiB or more, or if the queue is full ([`Cause::QueueFull`]) or broken.
    #[inline(always)]
    pub fn submit(
        &mut self,
        header: &[u8],
        mut payload: P,
    ) -> core::result::Result<Token, Rejected<P>> {
        match self.try_submit(header, &mut payload) {
            Ok((token, slot)) => {
                slot.payload = Some(payload);
                Ok(token)
            }
            Err(cause) => Err(Rejected {
                error: self.error(cause),
                payload,
            }),
        }
    }

    /// As [`Self::submit`], but takes the payload out of its place only when it is taken, and remembers who is to be told
    /// when the request is done.
    ///
    /// # Errors
    ///
    /// As for [`Self::submit`]; the payload is where it was. [`Cause::EmptyRequest`] if there is none.
    #[inline(always)]
    pub fn accept(
        &mut self,
        header: &[u8],
        payload: &mut Option<P>,
        waker: &Waker,
    ) -> Result<Token> {
        let submitted = match payload {
            Some(payload) => self.try_submit(header, payload),
            None => Err(Cause::EmptyRequest),
        };
        match submitted {
            Ok((token, slot)) => {
                slot.put(payload);
                // There was none, so there is none to drop.
                core::mem::forget(slot.waker.replace(waker.clone()));
                Ok(token)
            }
            Err(cause) => Err(self.error(cause)),
        }
    }

    /// All of submitting but the last step: the caller puts the payload, which is lent, into the slot.
    #[inline(always)]
    fn try_submit(
        &mut self,
        header: &[u8],
        payload: &mut P,
    ) -> core::result::Result<(Token, &mut Slot<P, T::Dma>), Cause> {
        if self.broken {
            return Err(Cause::QueueBroken);
        }
        let id = self.free;
        let slot = self.slots.get_mut(usize::from(id));
        let slot = slot.ok_or(Cause::QueueFull)?;
        let State::Free { next } = slot.state else {
            return Err(Cause::QueueFull);
        };
        // Should naming panic, nothing was lent.
        let (only, problem) = Chain::collect(payload, &mut slot.several);
        if let Some(cause) = problem {
            return Err(cause);
        }
        let (ring, dma, places) = (&mut self.ring, &self.dma, &self.places);
        match only {
            // Put in place here, without what several would need.
            Some(_) => add(ring, dma, places, id, slot, header, only)?,
            None => add_several(ring, dma, places, id, slot, header)?,
        }
        slot.state = State::InFlight;
        self.free = next;
        self.in_flight += 1;
        Ok((Token(id), slot))
    }

    /// Makes all submitted requests visible to the device, and rings its bell unless it said that it need not be.
    #[inline]
    pub fn kick(&mut self) {
        if !self.live {
            return;
        }
        match self.ring.publish() {
            Some(true) => {
                if let Some(bell) = &self.bell {
                    bell.notify();
                    self.stats.kicks += 1;
                }
            }
            Some(false) => self.stats.kicks_saved += 1,
            None => {}
        }
    }

    /// Makes all submitted requests visible to the device without ringing its bell, even if it asks for that (spec 2.7.10
    /// would have it rung then): only for buffers that the device looks for by itself, when it has something to put there,
    /// as a sound device does with its events.
    pub fn publish(&mut self) {
        if self.live {
            self.ring.publish();
        }
    }

    /// Takes the next completion, if there is one, and copies its footer to `footer` (as much as fits): [`Self::complete`]
    /// and [`Self::take`] in one.
    ///
    /// # Errors
    ///
    /// As for [`Self::complete`].
    #[inline]
    pub fn poll(&mut self, footer: &mut [u8]) -> Result<Option<Completion<P>>> {
        let Some(Ready { token, .. }) = self.complete()? else {
            return Ok(None);
        };
        let completion = self.take(token);
        let len = footer.len().min(self.places.footer_len);
        if let Some(slot) = self.slots.get(token.index())
            && let Some(footer) = footer.get_mut(..len)
        {
            dma::load_bytes(slot.record.footer(&self.places), footer);
        }
        Ok(completion)
    }

    /// Finds the next request that the device is done with, in the device's order, and ends its loans. The request keeps
    /// its token until it is taken back ([`Self::take`]).
    ///
    /// # Errors
    ///
    /// When the device names a request that is not in flight, or more of them than are: the queue is broken from then on,
    /// and what is in flight stays there until the device is reset ([`Self::release`]).
    #[inline(always)]
    pub fn complete(&mut self) -> Result<Option<Ready>> {
        if self.broken {
            return Err(self.error(Cause::QueueBroken));
        }
        match self.try_complete() {
            Ok(ready) => Ok(ready),
            Err(cause) => Err(self.broken_by(cause)),
        }
    }

    #[inline(always)]
    fn try_complete(&mut self) -> core::result::Result<Option<Ready>, Cause> {
        let Some(used) = self.ring.next_used(self.in_flight)? else {
            return Ok(None);
        };
        let bad_id = Cause::BadUsedId { id: used.id };
        let slot = self.slots.get_mut(used.id as usize).ok_or(bad_id)?;
        // There are no more than `MAX_SIZE` slots.
        let id = used.id as u16;
        if slot.state != State::InFlight {
            return Err(bad_id);
        }
        slot.state = State::Done;
        slot.used_len = used.len;
        slot.take_back(&self.dma);
        let waker = slot.waker.take();
        let room = slot.room;
        self.ring.free(id);
        self.in_flight -= 1;
        self.stats.completed += 1;
        if used.len > room {
            // What becomes of the request is for the driver to say.
            let len = used.len;
            self.stats.count(Cause::BadUsedLength { len, room });
        }
        let token = Token(id);
        Ok(Some(Ready { token, waker }))
    }

    #[cold]
    fn broken_by(&mut self, cause: Cause) -> Error {
        self.broken = true;
        self.violation = Some(cause);
        self.stats.count(cause);
        self.error(cause)
    }

    /// Who is to be told when a request is done that the device has; `None` if it has no such request.
    pub fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        let slot = self.slots.get_mut(token.index())?;
        (slot.state == State::InFlight).then_some(&mut slot.waker)
    }

    /// Takes back a request that [`Self::complete`] found; `None` if it is not done.
    #[inline(always)]
    pub fn take(&mut self, token: Token) -> Option<Completion<P>> {
        let (payload, (written, footer)) =
            self.take_with(token, |done| (done.written, done.footer))?;
        Some(Completion {
            token,
            payload,
            written,
            footer,
        })
    }

    /// The same, for a driver on a hot path: `look` sees what came of the request while that is in its place, and then it is
    /// moved out, for the only time.
    #[inline(always)]
    pub fn take_with<R>(
        &mut self,
        token: Token,
        look: impl FnOnce(Done<'_, P>) -> R,
    ) -> Option<(P, R)> {
        let slot = self.slots.get_mut(token.index())?;
        let seen = look(slot.done(&self.places)?);
        slot.state = State::Free { next: self.free };
        self.free = token.0;
        Some((slot.payload.take()?, seen))
    }

    /// A request that [`Self::complete`] found and nobody has taken.
    pub fn done(&mut self, token: Token) -> Option<Done<'_, P>> {
        self.slots.get_mut(token.index())?.done(&self.places)
    }

    /// Whether [`Self::poll`] would find something.
    #[inline]
    pub fn has_completions(&self) -> bool {
        !self.broken && self.ring.has_used()
    }

    /// Whether the device is done with all that it was given: it can't go on before it gets more.
    pub fn is_exhausted(&self) -> bool {
        !self.broken && self.ring.all_used(self.in_flight)
    }

    /// What the device did that broke the queue.
    pub fn failure(&self) -> Option<Error> {
        self.violation.map(|cause| self.error(cause))
    }

    /// Asks the device for an interrupt with the next completion. Returns whether there is one already, for which no
    /// interrupt may come: poll again.
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.ring.enable_interrupts(0);
        self.has_completions()
    }

    /// As [`Self::enable_interrupts`], but the device need not interrupt before `count` more completions than one. (It
    /// may all the same: without EVENT_IDX it can't be told.)
    pub fn enable_interrupts_after(&mut self, count: u16) -> bool {
        let most = self.in_flight.saturating_sub(1);
        self.ring.enable_interrupts(count.min(most));
        self.has_completions()
    }

    /// Asks the device not to interrupt. It is a hint: it may all the same.
    #[inline]
    pub fn disable_interrupts(&mut self) {
        self.ring.disable_interrupts();
    }

    /// After a reset of the device: ends all loans and hands back what was in flight, each with the token that named it.
    /// Does nothing if the proof is another transport's, or of a reset before this queue was made.
    ///
    /// Until this has been called, dropping the queue leaks its memory and all buffers in flight on purpose, because the
    /// device may still write to them.
    pub fn release(&mut self, proof: &Quiesced) -> Vec<(Token, P)> {
        if !proof.covers(self.instance, self.enabled) {
            return Vec::new();
        }
        self.live = false;
        self.broken = true;
        self.released += u64::from(self.in_flight);
        self.in_flight = 0;
        let in_flight = (0..).zip(&mut self.slots).filter_map(|(id, slot)| {
            if slot.state != State::InFlight {
                return None;
            }
            slot.state = State::Free { next: self.free };
            self.free = id;
            slot.take_back(&self.dma);
            slot.waker = None;
            Some((Token(id), slot.payload.take()?))
        });
        in_flight.collect()
    }

    /// `cause` as an error of this queue.
    #[cold]
    pub fn error(&self, cause: Cause) -> Error {
        Error::on_queue(self.device, self.index, cause)
    }
}

/// Lends the only segment that a payload named to the device, or else those in the slot's list, and gives them to the ring as
/// request `id`. After an error nothing is lent.
#[inline(always)]
fn add<P: Payload, D: DmaContext>(
    ring: &mut Ring<D>,
    dma: &D,
    places: &Places,
    id: u16,
    slot: &mut Slot<P, D>,
    header: &[u8],
    only: Option<Lent>,
) -> core::result::Result<(), Cause> {
    let loans = only.map_or(slot.several.len(), |_| 1);
    let shape = Shape::new(header.len(), loans);
    if slot.record.shape != shape {
        shape.check(places, ring.size())?;
        ring.prepare(dma, id, &mut slot.record, places, shape)?;
    }
    if !ring.has_room(|| shape.segments(places)) {
        return Err(Cause::QueueFull);
    }
    slot.record.begin(places, header);
    slot.lend(dma, only, places.footer_len)?;
    ring.add(id, &slot.record, places, slot.loans(only.is_some()));
    Ok(())
}

/// [`add`] for a list, which may be empty.
#[cold]
fn add_several<P: Payload, D: DmaContext>(
    ring: &mut Ring<D>,
    dma: &D,
    places: &Places,
    id: u16,
    slot: &mut Slot<P, D>,
    header: &[u8],
) -> core::result::Result<(), Cause> {
    add(ring, dma, places, id, slot, header, None)
}

impl<T: Transport, P> Drop for Queue<T, P> {
    fn drop(&mut self) {
        if !self.live {
            // The device never learned of them. In no other state is a loan in order: it is left of a context that panicked,
            // and the buffer may be gone.
            let in_flight = |slot: &&mut Slot<_, _>| slot.state == State::InFlight;
            for slot in self.slots.iter_mut().filter(in_flight) {
                slot.take_back(&self.dma);
            }
            return;
        }
        log::warn!(
            "{}: queue {} dropped while the device may use it: its memory is leaked",
            self.device,
            self.index
        );
        self.ring.leak();
        core::mem::forget(core::mem::take(&mut self.slots));
    }
}

/// A queue, whatever its requests carry: what [`crate::start`] does with all queues of a device.
pub trait AnyQueue<T: Transport> {
    /// As [`Queue::enable`].
    ///
    /// # Errors
    ///
    /// As there.
    fn enable(&mut self, transport: &mut T) -> Result<()>;

    /// Whether the device may access it.
    fn is_live(&self) -> bool;

    /// As [`Queue::release`], for whom what was in flight means nothing.
    fn discard(&mut self, proof: &Quiesced);
}

impl<T: Transport, P: Payload> AnyQueue<T> for Queue<T, P> {
    fn enable(&mut self, transport: &mut T) -> Result<()> {
        Self::enable(self, transport)
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn discard(&mut self, proof: &Quiesced) {
        drop(self.release(proof));
    }
}
