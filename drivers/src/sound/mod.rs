//! The sound device (spec 5.14): playback and capture, jacks, channel maps and control elements.
//!
//! [`Sound`] is the non-blocking core: [`Driver::submit`] a [`Request`], which is a control message or a period of frames,
//! [`Driver::kick`], [`Driver::poll`] for those that are done. Over it are two faces that wait,
//! [`crate::asynchronous::Asynchronous`] and [`crate::blocking::Blocking`], with a method per operation in
//! `asynchronous.rs` and `blocking.rs` here. What most users want is a [`Playback`], which is a [`FrameSink`], or a
//! [`Capture`], which is a [`FrameSource`]: they keep all periods of a stream with the device and take it through its states.
//!
//! Before it resets the device, the driver stops and releases all streams: otherwise QEMU's keeps their frames and plays them
//! when the next driver comes.
//!
//! | file | what is in it |
//! |---|---|
//! | `wire.rs` | what goes over the queues: one struct per message |
//! | `config.rs` | features and the device configuration |
//! | `pcm.rs` | formats, rates, parameters of a stream |
//! | `info.rs` | what the device says about its streams, jacks, channel maps and controls, checked |
//! | `request.rs` | requests with their buffers |
//! | `stream.rs` | the states of a stream, and what it did |
//! | `event.rs` | what the device reports without being asked |
//! | `frames.rs` | the traits for sinks and sources of frames |
//! | `playback.rs`, `capture.rs` | [`Playback`] and [`Capture`]: the sink and the source of a stream |

mod asynchronous;
mod blocking;
mod capture;
mod config;
mod event;
mod frames;
mod info;
mod pcm;
mod playback;
mod request;
mod stream;
pub mod wire;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ops::Deref;
use core::task::Waker;

use self::event::Events;
use self::request::{Body, Command, Header, Message, Transfer};
use self::stream::Stream;
use self::wire::{EVENT_LEN, RequestType, STATUS_LEN};
use crate::device::DeviceId;
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::{Negotiated, RingFeatures};
use crate::queue::{AnyQueue, Queue, QueueOptions, Ready, Rejected, Token};
use crate::report::Report;
use crate::start::{Session, Started};
use crate::transport::{Quiesced, Status, Transport};

pub use self::capture::Capture;
pub use self::config::{Config, FEATURE_NAMES, Features, MAX_ITEMS};
pub use self::event::Event;
pub use self::frames::{CopyError, FrameSink, FrameSource, copy};
pub use self::info::{
    ChannelMap, ControlInfo, Inventory, Items, JackInfo, Kind, Role, StreamInfo, ValueType, access,
};
pub use self::pcm::{Direction, Format, Layout, Params, Rate};
pub use self::playback::Playback;
pub use self::request::Request;
pub use self::stream::{State, StreamStats};

/// How a sound device is to be driven.
///
/// By default the driver takes 64 KiB of heap and 32 KiB of memory for DMA, and 6 and 16 KiB with queues of 4. Frames
/// come on top, on the heap: the periods of each stream, as long as it is open.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the control and the event queue, a power of two; the device's maximum if that is smaller.
    pub control_queue_size: u16,
    /// The same for the two queues of frames: it limits the periods that all streams of a direction have together.
    pub transfer_queue_size: u16,
    /// Features to do without, of the ring or of the type.
    pub declined: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            control_queue_size: 64,
            transfer_queue_size: 256,
            declined: 0,
        }
    }
}

const CONTROL_QUEUE: u16 = 0;
const EVENT_QUEUE: u16 = 1;
const TX_QUEUE: u16 = 2;
const RX_QUEUE: u16 = 3;

/// Segments of the longest control message: message, data, response.
const CONTROL_SEGMENTS: usize = 3;
/// Segments of a transfer: header, frames, status.
const TRANSFER_SEGMENTS: usize = 3;

/// How long a reset is put off for streams that are to be stopped and released: until the device status was read so often
/// without an answer, for all streams together. A register read leaves the processor and so takes a microsecond at least,
/// which makes it a tenth of a second or more, as for the reset itself. A device that works answers before the first few,
/// unless its host is busy elsewhere.
const MAX_STATUS_READS: u32 = 100_000;

/// A virtio sound device. Dereferences to [`Control`].
///
/// Counters: `commands` sent, `errors` for commands and transfers that failed, and of all streams together `periods` and
/// `bytes` transferred, `xruns` that the device told of.
pub struct Sound<T: Transport> {
    device: Started<T, Active<T>>,
    items: Items,
    streams: Vec<Stream>,
    next_claim: u64,
    /// Requests that are over, and nobody was told.
    finished: VecDeque<Ready>,
    events: event::Events,
    counters: Counters,
}

/// A sound device apart from its queues. Its [`Config`] says how many items of each kind it has.
pub type Control<T> = crate::start::Control<T, Active<T>>;

/// A sound device at work.
pub struct Active<T: Transport> {
    config: Config,
    queues: Queues<T>,
}

struct Queues<T: Transport> {
    control: Queue<T, Command>,
    event: Queue<T, ()>,
    tx: Queue<T, Transfer>,
    rx: Queue<T, Transfer>,
}

/// What a sound device did since it was found.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    commands: u64,
    errors: u64,
}

impl<T: Transport> Session<T> for Active<T> {
    type Options = Options;
    type Config = Config;
    /// The configuration has no field that may.
    type Change = Infallible;

    const ID: DeviceId = DeviceId::SOUND;
    const UNDERSTOOD: u64 = Features::all().bits();

    fn declined(_: &mut T, options: &Options) -> u64 {
        options.declined
    }

    fn configure(transport: &mut T, _: &Options, negotiated: Negotiated) -> Result<Config> {
        let features = Features::from_bits_truncate(negotiated.accepted);
        Config::read(transport, features)
    }

    fn make(
        transport: &mut T,
        options: &Options,
        config: &Config,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let mut queues = Queues::new(transport, options, negotiated)?;
        queues.prepare()?;
        let config = *config;
        Ok(Self { config, queues })
    }

    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>)) {
        let Queues {
            control,
            event,
            tx,
            rx,
        } = &mut self.queues;
        visit(control);
        visit(event);
        visit(tx);
        visit(rx);
    }
}

impl<T: Transport> Queues<T> {
    fn new(transport: &mut T, options: &Options, negotiated: Negotiated) -> Result<Self> {
        let with = |size, header_len, footer_len| QueueOptions {
            size,
            header_len,
            footer_len,
        };
        let control = with(options.control_queue_size, wire::MAX_REQUEST_LEN, 0);
        let event = with(options.control_queue_size, 0, EVENT_LEN);
        let transfer = with(options.transfer_queue_size, wire::XFER_LEN, STATUS_LEN);
        Ok(Self {
            control: Queue::allocate(transport, CONTROL_QUEUE, control, negotiated)?,
            event: Queue::allocate(transport, EVENT_QUEUE, event, negotiated)?,
            tx: Queue::allocate(transport, TX_QUEUE, transfer, negotiated)?,
            rx: Queue::allocate(transport, RX_QUEUE, transfer, negotiated)?,
        })
    }

    /// Sees whether the queues can carry what they must, and fills the event queue, of which the device learns later.
    fn prepare(&mut self) -> Result<()> {
        for (error, max, need) in [
            (
                &self.control.error(Cause::QueueFull),
                self.control.max_segments(),
                CONTROL_SEGMENTS,
            ),
            (
                &self.tx.error(Cause::QueueFull),
                self.tx.max_segments(),
                TRANSFER_SEGMENTS,
            ),
            (
                &self.rx.error(Cause::QueueFull),
                self.rx.max_segments(),
                TRANSFER_SEGMENTS,
            ),
        ] {
            if max < need {
                let cause = Cause::TooManySegments {
                    segments: need,
                    max,
                };
                return Err(Error { cause, ..*error });
            }
        }
        while self.event.has_room(1) {
            ask_for_event(&mut self.event)?;
        }
        Ok(())
    }

    /// Ends all loans and gives back what was in flight, but for what nobody waits for.
    fn release(&mut self, proof: &Quiesced) -> Vec<(Token, Request)> {
        drop(self.event.release(proof));
        let (tx_base, rx_base) = (self.tx_base(), self.rx_base());
        let control = self.control.release(proof).into_iter();
        let control = control.filter(|(_, control)| !control.internal);
        let control = control.map(|(token, control)| (token, Body::Control(control)));
        let tx = self.tx.release(proof).into_iter();
        let tx = tx.map(|(token, it)| (offset(token, tx_base), Body::Transfer(it)));
        let rx = self.rx.release(proof).into_iter();
        let rx = rx.map(|(token, it)| (offset(token, rx_base), Body::Transfer(it)));
        let all = control.chain(tx).chain(rx);
        all.map(|(token, body)| (token, Request { body })).collect()
    }

    /// Tokens of transfers come behind those of control messages.
    fn tx_base(&self) -> u16 {
        self.control.size()
    }

    fn rx_base(&self) -> u16 {
        self.tx_base() + self.tx.size()
    }
}

fn offset(token: Token, base: u16) -> Token {
    // Below the sum of the queues' sizes, which `Sound::new` saw to.
    Token::new(base + token.index() as u16)
}

impl<T: Transport> Sound<T> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// As for [`Started::new`], and a configuration that is impossible, or too small a queue.
    pub fn new(transport: T, options: Options) -> Result<Self> {
        let requests = u32::from(options.control_queue_size);
        if requests + 2 * u32::from(options.transfer_queue_size) > u16::MAX.into() {
            let cause = Cause::InvalidParameter("queues of more than 65535 requests together");
            return Err(Error::new(transport.name(), cause));
        }
        let mut this = Self {
            device: Started::new(transport, options)?,
            items: Items::default(),
            streams: Vec::new(),
            next_claim: 0,
            finished: VecDeque::new(),
            events: Events::default(),
            counters: Counters::default(),
        };
        this.forget();
        Ok(this)
    }

    /// Begins anew, with a device that was just initialised.
    fn forget(&mut self) {
        self.items = Items::default();
        self.streams.clear();
        let streams = self.device.config.streams as usize;
        self.streams.resize_with(streams, Stream::default);
        self.finished.clear();
        self.finished.reserve(self.queue_size().into());
    }

    /// What the device said about its items, as far as it was asked.
    pub fn items(&self) -> &Items {
        &self.items
    }

    /// Where a stream is in its life.
    pub fn state(&self, stream: u32) -> Option<State> {
        Some(self.streams.get(stream as usize)?.state)
    }

    /// What a stream carries or last carried.
    pub fn params(&self, stream: u32) -> Option<Params> {
        self.streams.get(stream as usize)?.params()
    }

    /// What became of a stream so far.
    pub fn stats(&self, stream: u32) -> Option<StreamStats> {
        Some(self.streams.get(stream as usize)?.stats)
    }

    /// Requests that are with the device.
    pub fn in_flight(&self) -> usize {
        let Queues {
            control, tx, rx, ..
        } = &self.device.queues;
        [control.in_flight(), tx.in_flight(), rx.in_flight()]
            .into_iter()
            .map(usize::from)
            .sum()
    }

    /// What the device told on its own, in order, one after the other. It tells nothing before it was asked for everything
    /// that it has.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.take()
    }

    /// Makes a stream somebody's, who names the number that this gives when done with it ([`Self::end`]).
    ///
    /// # Errors
    ///
    /// It is somebody's already ([`Cause::Busy`]), or the device would not release it.
    pub fn claim(&mut self, stream: u32) -> Result<u64> {
        let claim = self.next_claim;
        let found = self.streams.get_mut(stream as usize);
        let claimed = match found {
            Some(stream) => stream.claim(claim),
            None => Err(Cause::InvalidParameter("no such stream")),
        };
        claimed.map_err(|cause| self.error(cause))?;
        self.next_claim += 1;
        Ok(claim)
    }

    /// Stops and releases a stream, if it is still that one's who claimed it so, and makes it nobody's. Nobody need wait:
    /// the driver sends each command when it learns that the one before is done.
    pub fn end(&mut self, stream: u32, claim: u64) {
        if let Some(found) = self.streams.get_mut(stream as usize)
            && found.is_claimed_as(claim)
        {
            found.ending = true;
            self.end_streams();
        }
    }

    /// Sends what comes next to all streams that are being ended.
    fn end_streams(&mut self) {
        let control = &mut self.device.queues.control;
        for (id, stream) in (0..).zip(&mut self.streams) {
            stream.settle();
            let Some(command) = stream.next_to_end() else {
                continue;
            };
            let message = Command::internal(command, id);
            let header = Header::item(command, id);
            // If there is no room for it or no memory, there will be when another message is done.
            if let Ok(message) = message
                && send(control, header, message).is_ok()
            {
                self.counters.commands += 1;
                stream.begin(command, None);
            }
        }
        control.kick();
    }

    /// Ends all streams and waits for that, for as long as [`AnswerWait`] allows. Gives what was over meanwhile.
    fn end_all(&mut self) -> Vec<(Token, Request)> {
        let mut over = Vec::new();
        for stream in &mut self.streams {
            stream.ending = true;
        }
        self.end_streams();
        let mut wait = AnswerWait::new(self.device.control());
        while !self.streams.iter().all(Stream::is_idle) {
            match self.poll() {
                // Nothing is submitted for those who waited, so there are no more of these than were in flight.
                Ok(Some(finished)) => over.push((finished.token, finished.request)),
                Ok(None) if wait.goes_on() => {}
                Ok(None) | Err(_) => break,
            }
        }
        while let Some(Ready { token, .. }) = self.finished.pop_front() {
            over.extend(self.take(token).map(|it| (it.token, it.request)));
        }
        over
    }
}

/// After a session that ended without a RELEASE.
impl<T: Transport> Sound<T> {
    /// Has the device stop and release all streams, in whatever state they are. What it answers doesn't matter, nor what it
    /// does to the queues of transfers: it must be reset afterwards. A device that does not answer is waited for as long
    /// as [`AnswerWait`] allows, in all and not for each stream.
    fn release_left_over(&mut self) -> Result<()> {
        let mut wait = AnswerWait::new(self.device.control());
        let commands = [RequestType::PcmStop, RequestType::PcmRelease];
        let streams = 0..self.device.config.streams;
        let all = streams.flat_map(|stream| commands.map(|command| (command, stream)));
        let control = &mut self.device.queues.control;
        for (command, stream) in all {
            while !control.has_room(CONTROL_SEGMENTS) {
                control.kick();
                if control.poll(&mut [])?.is_none() && !wait.goes_on() {
                    return Ok(());
                }
            }
            let message = Command::internal(command, stream);
            let message = message.map_err(|cause| control.error(cause))?;
            let header = Header::item(command, stream);
            send(control, header, message).map_err(|rejected| rejected.error)?;
        }
        control.kick();
        while control.in_flight() > 0 {
            if control.poll(&mut [])?.is_none() && !wait.goes_on() {
                break;
            }
        }
        Ok(())
    }
}

/// Submits a message for the control queue. Out of line, since submitting is 3 KB of code wherever it is inlined.
#[inline(never)]
#[expect(clippy::result_large_err, reason = "the message goes back")]
fn send<T: Transport>(
    queue: &mut Queue<T, Command>,
    header: Header,
    message: Command,
) -> Result<Token, Rejected<Command>> {
    queue.submit(header.bytes(), message)
}

/// Gives the device room for an event. Out of line, as [`send`].
#[inline(never)]
fn ask_for_event<T: Transport>(queue: &mut Queue<T, ()>) -> Result<()> {
    queue.submit(&[], ())?;
    Ok(())
}

/// How much longer a device that is about to be reset is waited for.
struct AnswerWait<T: Transport> {
    device: Control<T>,
    reads_left: u32,
}

impl<T: Transport> AnswerWait<T> {
    fn new(device: &Control<T>) -> Self {
        Self {
            device: device.clone(),
            reads_left: MAX_STATUS_READS,
        }
    }

    /// To be asked whenever there was no answer: reads the status, and says whether one may still come.
    fn goes_on(&mut self) -> bool {
        let Some(left) = self.reads_left.checked_sub(1) else {
            return false;
        };
        self.reads_left = left;
        core::hint::spin_loop();
        let status = self.device.with(|device| device.transport.status());
        status.contains(Status::DRIVER_OK) && !status.contains(Status::DEVICE_NEEDS_RESET)
    }
}

/// Taking what the device is done with.
impl<T: Transport> Sound<T> {
    /// Gives the device room for events once it was asked for everything, the last step of its initialisation (spec 5.14.5).
    ///
    /// It is not notified: it looks for a buffer when it has an event, and Linux does the same. vhost-device-sound 0.3.0, if
    /// notified of a buffer in this queue, looks at it for ever and answers no command. Nor may there be one while it starts,
    /// since QEMU notifies such a daemon once of every queue.
    fn invite_events(&mut self) {
        let config = self.device.config;
        let asked = |kind: &Kind| kind.count(&config) == 0 || self.items.are_asked(*kind);
        if Kind::ALL.iter().all(asked) {
            self.device.queues.event.publish();
        }
    }

    /// Takes what the device told on its own, and gives it the room to tell more. At most as many events as the queue
    /// holds: a device that has others at once is not listened to for ever.
    fn poll_events(&mut self) -> Result<()> {
        let queue = &mut self.device.queues.event;
        let mut any = false;
        // What comes meanwhile has its turn later.
        for _ in 0..queue.size() {
            let mut bytes = [0; EVENT_LEN];
            let Some(completion) = queue.poll(&mut bytes)? else {
                break;
            };
            let event = match completion.written {
                Ok(len) if len as usize >= EVENT_LEN => Event::decode(bytes),
                _ => None,
            };
            self.events.add(event, &mut self.items, &mut self.streams);
            ask_for_event(queue)?;
            any = true;
        }
        if any {
            queue.kick();
        }
        Ok(())
    }

    /// Finds the next transfer that is over.
    fn complete_transfer(&mut self) -> Result<Option<Ready>> {
        let queues = &mut self.device.queues;
        let (tx_base, rx_base) = (queues.tx_base(), queues.rx_base());
        for (base, queue) in [(tx_base, &mut queues.tx), (rx_base, &mut queues.rx)] {
            let Some(ready) = queue.complete()? else {
                continue;
            };
            if let Some(done) = queue.done(ready.token) {
                let transfer = done.payload;
                let result = transfer.judge(done.written, done.footer.to_le_bytes());
                transfer.result = result.map(drop);
                if let Some(stream) = self.streams.get_mut(transfer.stream as usize) {
                    stream.transferred(transfer.len, result);
                }
            }
            let token = offset(ready.token, base);
            return Ok(Some(Ready { token, ..ready }));
        }
        Ok(None)
    }

    /// Finds the control messages that are over, and all transfers that were over before them: a device completes a
    /// RELEASE after the stream's last transfer, and so does this driver.
    ///
    /// It ends whatever the device does: what was in flight can come back only once, and all that is submitted meanwhile
    /// is a STOP and a RELEASE for each stream that is being ended.
    fn complete_control(&mut self) -> Result<()> {
        while let Some(ready) = self.device.queues.control.complete()? {
            while let Some(transfer) = self.complete_transfer()? {
                self.finished.push_back(transfer);
            }
            let control = &mut self.device.queues.control;
            let Some(done) = control.done(ready.token) else {
                continue;
            };
            let (message, written) = (done.payload, done.written);
            let result = take_answer(message, written, &mut self.items, &mut self.streams);
            message.result = result;
            let internal = message.internal;
            self.counters.errors += u64::from(result.is_err());
            self.invite_events();
            self.end_streams();
            match internal {
                true => drop(self.device.queues.control.take(ready.token)),
                false => self.finished.push_back(ready),
            }
        }
        Ok(())
    }

    /// Hands a request back that is over.
    fn give_back(&mut self, token: Token) -> Option<(Request, Result<()>)> {
        let queues = &mut self.device.queues;
        let (tx_base, rx_base) = (queues.tx_base(), queues.rx_base());
        let number = token.index() as u16;
        if number < tx_base {
            let control = queues.control.take(token)?.payload;
            let result = control.result.map_err(|cause| queues.control.error(cause));
            let body = Body::Control(control);
            return Some((Request { body }, result));
        }
        let (queue, base) = match number < rx_base {
            true => (&mut queues.tx, tx_base),
            false => (&mut queues.rx, rx_base),
        };
        let transfer = queue.take(Token::new(number - base))?.payload;
        let result = transfer.result.map_err(|cause| queue.error(cause));
        let body = Body::Transfer(transfer);
        Some((Request { body }, result))
    }
}

/// Takes down how a control message ended.
fn take_answer(
    control: &mut Command,
    written: Result<u32, Cause>,
    items: &mut Items,
    streams: &mut [Stream],
) -> Result<(), Cause> {
    let result = control.judge(written);
    match control.message {
        Message::Info(kind, _) => {
            return items.take(kind, result.map(|()| control.answer()));
        }
        Message::SetParams { stream, .. } | Message::Stream(_, stream) => {
            if let Some(stream) = streams.get_mut(stream as usize) {
                stream.end(control.message.kind(), result.is_ok());
            }
        }
        Message::JackRemap { .. } | Message::Element(..) => {}
    }
    result
}

/// Giving it something to do.
impl<T: Transport> Sound<T> {
    /// Checks a control message, and makes what the device reads first.
    fn admit_control(&self, control: &Command) -> Result<Header, Cause> {
        control.check(&self.device.config, &self.items)?;
        match control.message {
            Message::SetParams { stream, params } => {
                self.check_command(stream, RequestType::PcmSetParams, Some(params))?;
            }
            Message::Stream(command, stream) => self.check_command(stream, command, None)?,
            Message::Info(..) | Message::JackRemap { .. } | Message::Element(..) => {}
        }
        Ok(control.header(self.items.streams.items()))
    }

    /// The device has a message that was admitted.
    fn begin(&mut self, message: Message) {
        self.counters.commands += 1;
        let (stream, params) = match message {
            Message::SetParams { stream, params } => (stream, Some(params)),
            Message::Stream(_, stream) => (stream, None),
            Message::Info(..) | Message::JackRemap { .. } | Message::Element(..) => return,
        };
        if let Some(stream) = self.streams.get_mut(stream as usize) {
            stream.begin(message.kind(), params);
        }
    }

    /// Whether a stream may be given a command now: by its state, and by the room that there is for its periods.
    fn check_command(
        &self,
        id: u32,
        command: RequestType,
        params: Option<Params>,
    ) -> Result<(), Cause> {
        let stream = self.streams.get(id as usize);
        let stream = stream.ok_or(Cause::InvalidParameter("no such stream"))?;
        stream.check(command)?;
        let periods = match command {
            RequestType::PcmSetParams => params.map_or(0, |params| params.periods()),
            RequestType::PcmPrepare => stream.params().map_or(0, |params| params.periods()),
            _ => return Ok(()),
        };
        let direction = |id: u32| self.items.streams.get(id).map(|info| info.direction);
        let room = self.room_for_periods(direction(id));
        if periods > room {
            return Err(Cause::InvalidParameter("more periods than the queue takes"));
        }
        let others = (0..).zip(&self.streams);
        let others = others.filter(|(other, _)| *other != id && direction(*other) == direction(id));
        let held: u64 = others
            .map(|(_, other)| u64::from(other.periods_held()))
            .sum();
        match command == RequestType::PcmPrepare && held + u64::from(periods) > room.into() {
            true => Err(Cause::Busy),
            false => Ok(()),
        }
    }

    /// How many periods fit into the queue of a direction.
    fn room_for_periods(&self, direction: Option<Direction>) -> u32 {
        let Queues { tx, rx, .. } = &self.device.queues;
        let size = match direction {
            Some(Direction::Input) => rx.size(),
            _ => tx.size(),
        };
        match self
            .device
            .negotiated()
            .has(RingFeatures::INDIRECT_DESC.bits())
        {
            true => size.into(),
            false => u32::from(size) / TRANSFER_SEGMENTS as u32,
        }
    }

    /// Checks a transfer, and counts it.
    fn admit_transfer(&mut self, transfer: &Transfer) -> Result<(), Cause> {
        let Queues { tx, rx, .. } = &self.device.queues;
        let (queue, direction) = match transfer.output {
            true => (tx, Direction::Output),
            false => (rx, Direction::Input),
        };
        let known = self.items.streams.get(transfer.stream);
        let stream = self.streams.get_mut(transfer.stream as usize);
        match stream {
            Some(stream) if known.map(|info| info.direction) == Some(direction) => {
                stream.transfer(transfer.len, transfer.output, queue.is_exhausted())
            }
            Some(_) => Err(Cause::InvalidParameter(
                "the stream is not known, or flows the other way",
            )),
            None => Err(Cause::InvalidParameter("no such stream")),
        }
    }
}

fn rejected(error: Error, body: Body) -> Rejected<Request> {
    let payload = Request { body };
    Rejected { error, payload }
}

impl<T: Transport> Deref for Sound<T> {
    type Target = Control<T>;

    fn deref(&self) -> &Control<T> {
        self.device.control()
    }
}

impl<T: Transport> Driver for Sound<T> {
    type Request = Request;
    type Control = Control<T>;

    fn control(&self) -> &Control<T> {
        self.device.control()
    }

    fn report(&self) -> Report {
        let Queues {
            control,
            event,
            tx,
            rx,
        } = &self.device.queues;
        let stats = self.streams.iter().map(|stream| stream.stats);
        let sum = |of: fn(StreamStats) -> u64| stats.clone().map(of).sum();
        Report {
            device: self.name(),
            negotiated: self.device.negotiated(),
            feature_names: FEATURE_NAMES,
            queues: vec![
                control.report("controlq"),
                event.report("eventq"),
                tx.report("txq"),
                rx.report("rxq"),
            ],
            config_changes: self.changes_announced(),
            counters: vec![
                ("commands", self.counters.commands),
                ("errors", self.counters.errors + sum(|of| of.errors)),
                ("periods", sum(|of| of.periods)),
                ("bytes", sum(|of| of.bytes)),
                ("xruns", sum(|of| of.xruns)),
                ("xrun_events", sum(|of| of.xrun_events)),
                ("events", self.events.taken),
                ("bad_events", self.events.bad),
                ("lost_events", self.events.lost),
            ],
        }
    }

    fn submit(&mut self, request: Request) -> Result<Token, Rejected<Request>> {
        match request.body {
            Body::Control(control) => {
                let header = match self.admit_control(&control) {
                    Ok(header) => header,
                    Err(cause) => return Err(rejected(self.error(cause), Body::Control(control))),
                };
                let message = control.message;
                let queue = &mut self.device.queues.control;
                let token = send(queue, header, control)
                    .map_err(|it| rejected(it.error, Body::Control(it.payload)))?;
                self.begin(message);
                Ok(token)
            }
            Body::Transfer(transfer) => {
                let id = transfer.stream;
                if let Err(cause) = self.admit_transfer(&transfer) {
                    return Err(rejected(self.error(cause), Body::Transfer(transfer)));
                }
                let queues = &mut self.device.queues;
                let (base, queue) = match transfer.output {
                    true => (queues.tx_base(), &mut queues.tx),
                    false => (queues.rx_base(), &mut queues.rx),
                };
                let submitted = queue.submit(&id.to_le_bytes(), transfer);
                submitted.map(|token| offset(token, base)).map_err(|it| {
                    if let Some(stream) = self.streams.get_mut(id as usize) {
                        stream.not_transferred();
                    }
                    rejected(it.error, Body::Transfer(it.payload))
                })
            }
        }
    }

    fn kick(&mut self) {
        let queues = &mut self.device.queues;
        // Frames before what starts them: a device that is told to start first finds none, and plays a gap.
        queues.tx.kick();
        queues.rx.kick();
        queues.control.kick();
    }

    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        let is_it = |ready: &&mut Ready| ready.token == token;
        if let Some(ready) = self.finished.iter_mut().find(is_it) {
            return Some(&mut ready.waker);
        }
        let queues = &mut self.device.queues;
        let (tx_base, rx_base) = (queues.tx_base(), queues.rx_base());
        let number = token.index() as u16;
        match number {
            _ if number < tx_base => queues.control.waker(token),
            _ if number < rx_base => queues.tx.waker(Token::new(number - tx_base)),
            _ => queues.rx.waker(Token::new(number - rx_base)),
        }
    }

    fn complete(&mut self) -> Result<Option<Ready>> {
        self.poll_events()?;
        if self.finished.is_empty() {
            self.complete_control()?;
        }
        match self.finished.pop_front() {
            Some(ready) => Ok(Some(ready)),
            None => self.complete_transfer(),
        }
    }

    fn take(&mut self, token: Token) -> Option<Finished<Request>> {
        // Done, but nobody was told.
        if self.finished.iter().any(|ready| ready.token == token) {
            return None;
        }
        let (request, result) = self.give_back(token)?;
        Some(Finished {
            token,
            request,
            result,
        })
    }

    fn enable_interrupts(&mut self) -> bool {
        let queues = &mut self.device.queues;
        let mut any = !self.finished.is_empty();
        any |= queues.control.enable_interrupts();
        any |= queues.event.enable_interrupts();
        any |= queues.tx.enable_interrupts();
        any |= queues.rx.enable_interrupts();
        any
    }

    fn disable_interrupts(&mut self) {
        let queues = &mut self.device.queues;
        queues.control.disable_interrupts();
        queues.event.disable_interrupts();
        queues.tx.disable_interrupts();
        queues.rx.disable_interrupts();
    }

    fn queue_size(&self) -> u16 {
        let queues = &self.device.queues;
        queues.rx_base() + queues.rx.size()
    }

    fn error(&self, cause: Cause) -> Error {
        self.device.queues.control.error(cause)
    }

    /// Ends all streams first, as far as the device lets it. It waits for that a tenth of a second, or longer where
    /// register reads are slow, however many streams there are.
    fn reset(&mut self) -> Result<Vec<(Token, Request)>> {
        let mut requests = self.end_all();
        let proof = self.device.reset()?;
        requests.extend(self.device.queues.release(&proof));
        self.forget();
        Ok(requests)
    }

    /// If the device returned transfers that it was not given, the streams of an earlier session are released first:
    /// whoever had it then did not, and a reset does not make every device forget them.
    fn restart(&mut self) -> Result<()> {
        let queues = &self.device.queues;
        let left_over = queues.tx.failure().or(queues.rx.failure()).is_some();
        drop(self.reset()?);
        self.device.restart()?;
        if left_over {
            let released = self.release_left_over();
            let proof = self.device.reset()?;
            drop(self.device.queues.release(&proof));
            released?;
            self.device.restart()?;
        }
        self.forget();
        Ok(())
    }
}

impl<T: Transport> Drop for Sound<T> {
    fn drop(&mut self) {
        // The streams are ended before the device is reset.
        drop(self.end_all());
        match self.device.end() {
            Ok(proof) => drop(self.device.queues.release(&proof)),
            Err(error) => log::error!("{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::barrier::watch::{self, Barrier};
    use crate::fake::{FakeDevice, FakeSound, Memory};

    /// A device need not wait for a buffer to be given to it before it says that it used it again.
    #[test]
    fn events_that_were_never_asked_for_keep_nobody_in_poll() {
        const EVENT_QUEUE: u16 = 1;
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeSound::new());
        let mut card = Sound::new(device.transport(), Options::default()).expect("a device");
        let taken = |card: &Sound<_>| card.report().queues[1].stats.completed;
        let most = u64::from(card.report().queues[1].size);
        let before = taken(&card);
        device.claim_used(EVENT_QUEUE, 0, 8);
        // With each that the driver looks at there is another one.
        let mut left = 10_000;
        let liar = device.clone();
        let watcher = move |barrier| {
            if barrier == Barrier::Acquire && left > 0 {
                left -= 1;
                liar.claim_used(EVENT_QUEUE, 0, 8);
            }
        };
        let polled = watch::during(watcher, || card.poll());
        assert!(
            polled
                .expect("no rule that can be checked is broken")
                .is_none()
        );
        assert_eq!(taken(&card) - before, most);
        drop(card);
        memory.assert_clean();
    }
}
