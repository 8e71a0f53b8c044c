//! The network device (spec 5.1): an Ethernet interface.
//!
//! [`Net`] is the non-blocking core: [`Net::receive`] and [`Net::transmit`] give frames that lie in the memory which the
//! device writes and reads, [`Net::flush`] tells the device about all that was done since the last time, and
//! [`Net::command`] sets what is received. [`Net::poll_ready`] is the async face: it says when there is something to do, and
//! has the device interrupt only when there is nothing ([`Net::prepare_to_sleep`]). [`smoltcp`] puts an IP stack on top.
//!
//! Buffers are allocated once. A received frame is read where the device wrote it and its buffer goes back when the frame
//! is dropped, whatever was wrong with it; a frame to send is written where the device reads it.
//!
//! | file | what is in it |
//! |---|---|
//! | `config.rs` | feature bits, and the device configuration, checked |
//! | `wire.rs` | what goes over the queues: headers and commands |
//! | `checksum.rs` | the checksums of TCP and UDP |
//! | `receive.rs` | the receive queue and [`RxFrame`] |
//! | `transmit.rs` | the transmit queue and [`TxFrame`] |
//! | `control.rs` | the control queue, [`Command`] and [`Reply`] |
//! | `smoltcp.rs` | `smoltcp::phy::Device` |
//!
//! # Offloads
//!
//! Checksums of TCP and UDP are left to the device where it can do them, and it may leave them to the driver; and one
//! frame may stand for several segments of TCP or several datagrams, up to 64 KiB of them, in both directions. None of that is seen by
//! who only sends frames as they are. What was received says of itself what is left to do: [`RxFrame::checksum`] and
//! [`RxFrame::segmentation`]. What is sent is told: [`TxFrame::offload_checksum`] and [`TxFrame::segment`]. The adapter to smoltcp
//! does all this by itself.
//!
//! ```
//! # #[cfg(feature = "fake")] {
//! use vringlet::fake::{FakeDevice, FakeNic, Memory};
//! use vringlet::net::{Net, Options};
//!
//! # Memory::fresh();
//! // A card whose wire comes back to it. A kernel has a `PciTransport` instead.
//! let mut nic = FakeNic::new();
//! nic.loopback = true;
//! let card = FakeDevice::new(nic);
//! let mut net: Net<_> = Net::new(card.transport(), Options::default())?;
//!
//! let own = net.mac().0;
//! let mut frame = net.transmit(64)?;
//! frame.fill(7);
//! frame[..6].copy_from_slice(&own);
//! frame.send()?;
//! net.flush();
//!
//! let frame = net.receive()?.expect("what was sent");
//! assert_eq!((&frame[..6], frame[63]), (&own[..], 7));
//! # }
//! # Ok::<(), vringlet::Error>(())
//! ```

mod checksum;
mod config;
mod control;
mod receive;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
mod transmit;
mod wire;

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Deref;
use core::task::{Context, Poll, Waker};

use self::control::{ControlQueue, Setting};
use self::receive::{ReceiveOptions, Receiver};
use self::transmit::{TransmitOptions, Transmitter};
use self::wire::{ETHERNET_HEADER_LEN, HEADER_LEN, LINK_HEADERS_LEN, MAX_LARGE_FRAME};
use crate::device::DeviceId;
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{AnyQueue, Payload, Queue};
use crate::report::{QueueReport, Report};
use crate::start::{Configured, Session, Started};
use crate::transport::{InterruptCauses, Transport};

pub use self::config::{Config, FEATURE_NAMES, Features, Link, MacAddress, feature_names};
pub use self::control::{Command, ControlStats, ReceiveMode, Reply};
pub use self::receive::{Checksum, ReceiveStats, RxFrame};
pub use self::transmit::{TransmitStats, TxFrame};
pub use self::wire::{SegmentKind, Segmentation};

/// How a network device is to be driven.
///
/// By default the driver takes a megabyte of heap (1098 KiB at the usual MTU) and 56 KiB of memory for DMA. Most of it is
/// [`receive_buffers`](field@Self::receive_buffers) times [`Self::receive_buffer_len`], and a buffer for the longest frame
/// for each descriptor of the transmit queue. With a device that has offloads it is two megabytes (2104 KiB): a frame may stand for
/// 64 KiB of them then, in both directions. All that is for speed; with 8 receive buffers on a queue of 8, a transmit queue
/// of 4, and no such frames, it takes 42 and 16 KiB:
///
/// ```
/// # use vringlet::net::Options;
/// let small = Options {
///     receive_queue_size: 8,
///     receive_buffers: 8,
///     transmit_queue_size: 4,
///     large_receive_buffers: 0,
///     large_transmit_buffers: 0,
///     ..Options::default()
/// };
/// ```
///
/// The least is one frame at a time in either direction, in 21 and 16 KiB: receive queue and buffers of 2, their length 0
/// (it is raised to what a frame needs), and a transmit queue of 1. With a device that allows a larger MTU, the
/// buffers to receive into are larger, and those to send from if [`Self::mtu_max`] is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the receive queue, a power of two; the device's maximum if that is smaller.
    pub receive_queue_size: u16,
    /// Descriptors and buffers of the transmit queue, likewise.
    pub transmit_queue_size: u16,
    /// Receive buffers; no more than the receive queue has descriptors. Where a frame may only come in one buffer and the
    /// MTU needs longer ones, there are fewer, of the same total.
    pub receive_buffers: u16,
    /// Length of a receive buffer in bytes, at least 12 for the header. It is raised where one frame would not fit into
    /// one buffer, or with `MRG_RXBUF` into all of them.
    pub receive_buffer_len: usize,
    /// Receive buffers where a frame may stand for several segments, instead of
    /// [`receive_buffers`](field@Self::receive_buffers). With 0 that is declined: `GUEST_TSO4` and `GUEST_TSO6`.
    pub large_receive_buffers: u16,
    /// Length of each of those. It is raised, as [`Self::receive_buffer_len`] is, for a frame of 64 KiB.
    pub large_receive_buffer_len: usize,
    /// Transmit buffers for frames that stand for several segments, of 64 KiB each; no more than every second one. With 0 that is
    /// declined: `HOST_TSO4`, `HOST_TSO6` and `HOST_USO`.
    pub large_transmit_buffers: u16,
    /// The largest IP packet to send, if the device allows larger ones.
    pub mtu_max: u16,
    /// The MAC address, if the device has none; made up from the device's place if this is `None`.
    pub fallback_mac: Option<MacAddress>,
    /// Feature bits to do without, of [`Features`] and [`crate::features::RingFeatures`].
    pub declined: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            receive_queue_size: 256,
            transmit_queue_size: 256,
            receive_buffers: 256,
            // One frame of the usual MTU fits, and two buffers fit into a page.
            receive_buffer_len: 2048,
            large_receive_buffers: 64,
            large_receive_buffer_len: 16384,
            large_transmit_buffers: 8,
            mtu_max: 9000,
            fallback_mac: None,
            declined: 0,
        }
    }
}

impl Options {
    /// Number and length of the receive buffers for frames of up to `max_frame` bytes, or for `large` ones, on a queue of
    /// `queue_size`.
    fn receive_buffers(
        &self,
        queue_size: u16,
        max_frame: usize,
        large: bool,
        mergeable: bool,
    ) -> (u16, usize) {
        let (count, len, longest) = match large {
            true => (
                self.large_receive_buffers,
                self.large_receive_buffer_len,
                max_frame.max(MAX_LARGE_FRAME),
            ),
            false => (self.receive_buffers, self.receive_buffer_len, max_frame),
        };
        let count = count.min(queue_size).max(1);
        let need = HEADER_LEN + longest;
        if mergeable {
            let each = need.div_ceil(count.into());
            (count, len.max(each).max(HEADER_LEN))
        } else {
            let total = usize::from(count) * len;
            let len = len.max(need);
            let affordable = u16::try_from(total / len).unwrap_or(u16::MAX);
            (affordable.clamp(2.min(count), count), len)
        }
    }
}

/// Something that a network stack should know of, to be had once from [`Net::take_event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link went up or down, or its speed changed; [`Net::link`] says how it is now.
    LinkChanged,
    /// The guest may be at another place of the network now and should make itself known there, by a gratuitous ARP for
    /// example (spec 5.1.6.5.4). The device has been told that the wish was heard.
    Announce,
    /// The device broke the rules or asks for a reset: nothing goes in or out until [`Net::restart`].
    Failed(Error),
}

/// A network device with one pair of queues. Dereferences to [`Control`].
///
/// When it is dropped it resets the device, and frames that have not left by then may be lost: [`Self::flush_and_wait`].
pub struct Net<T: Transport> {
    device: Started<T, Active<T>>,
    announce: bool,
    /// The first thing that made the device unusable, and whether an event told of it.
    failure: Option<Error>,
    failure_told: bool,
    /// Who sleeps until there is something to do.
    waker: Option<Waker>,
    announcements: u64,
}

/// A network device apart from its queues, and its [`Config`].
pub type Control<T> = crate::start::Control<T, Active<T>>;

/// A network device at work.
pub struct Active<T: Transport> {
    /// The largest IP packet to send.
    mtu: u16,
    link: Link,
    link_changed: bool,
    /// How often the configuration had the wish to be announced, and for how many of them that was seen to.
    announcements: u64,
    announcements_seen: u64,
    /// What the device may leave to the driver.
    guest_offloads: Features,
    queues: Queues<T>,
}

/// Without MQ and RSS these are all that there are (spec 5.1.2).
struct Queues<T: Transport> {
    receiver: Receiver<T>,
    transmitter: Transmitter<T>,
    control: Option<ControlQueue<T>>,
}

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
const CONTROL_QUEUE: u16 = 2;
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The size that a queue gets for which `wanted` is asked: the device's maximum may be smaller and no power of two, and
/// then the queue gets the next smaller one that is. There are as many buffers as that, and no more.
fn queue_size<T: Transport>(transport: &mut T, index: u16, wanted: u16) -> u16 {
    let max = transport.queue_max_size(index).max(1);
    wanted.min(1 << max.ilog2())
}

/// Those of some features that were agreed on.
fn negotiated_of(negotiated: Negotiated, features: Features) -> Features {
    let agreed = features.iter().filter(|one| negotiated.has(one.bits()));
    agreed.collect()
}

impl<T: Transport> Session<T> for Active<T> {
    type Options = Options;
    type Config = Config;
    /// What changed is told by [`Net::take_event`].
    type Change = ();

    const ID: DeviceId = DeviceId::NET;
    const UNDERSTOOD: u64 = Features::all().bits();

    fn declined(transport: &mut T, options: &Options) -> u64 {
        // A feature that needs another one is not accepted without it (spec 5.1.3.1).
        let mut declined = options.declined;
        if options.large_receive_buffers == 0 {
            declined |= Features::LARGE_RECEIVE.bits();
        }
        if options.large_transmit_buffers == 0 {
            declined |= Features::LARGE_TRANSMIT.bits();
        }
        let available = transport.device_features() & !declined;
        let unusable = Features::unusable_with(Features::from_bits_truncate(available));
        declined | unusable.bits()
    }

    fn configure(transport: &mut T, options: &Options, negotiated: Negotiated) -> Result<Config> {
        Config::read(transport, negotiated, options.fallback_mac)
    }

    fn make(
        transport: &mut T,
        options: &Options,
        config: &Config,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let mut queues = Queues::new(transport, options, config.mtu, negotiated)?;
        queues.transmitter.set_link(config.link.up);
        Ok(Self {
            mtu: config.mtu.min(options.mtu_max),
            link: config.link,
            link_changed: false,
            announcements: config.announcements,
            announcements_seen: 0,
            guest_offloads: negotiated_of(negotiated, Features::GUEST_OFFLOADS),
            queues,
        })
    }

    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>)) {
        visit(self.queues.receiver.queue_mut());
        visit(self.queues.transmitter.queue_mut());
        if let Some(control) = &mut self.queues.control {
            visit(control.queue_mut());
        }
    }

    fn begin(&mut self) {
        // Not before: no queue may be notified until DRIVER_OK is set (spec 3.1.1).
        self.queues.receiver.publish();
    }

    fn reconfigure(device: &mut Configured<T, Config>) -> Result<Option<()>> {
        let config = &mut device.config;
        let changed = config.update(&device.transport, device.negotiated)?;
        Ok(changed.then_some(()))
    }

    fn follow(&mut self, config: &Config) {
        self.link_changed |= config.link != self.link;
        self.link = config.link;
        self.queues.transmitter.set_link(config.link.up);
        self.announcements = config.announcements;
    }
}

impl<T: Transport> Deref for Net<T> {
    type Target = Control<T>;

    fn deref(&self) -> &Control<T> {
        self.control()
    }
}

impl<T: Transport> Queues<T> {
    /// `mtu` is the device's.
    fn new(transport: &mut T, options: &Options, mtu: u16, negotiated: Negotiated) -> Result<Self> {
        let mergeable = negotiated.has(Features::MRG_RXBUF.bits());
        let large = !negotiated_of(negotiated, Features::LARGE_RECEIVE).is_empty();
        let max_frame = usize::from(mtu) + LINK_HEADERS_LEN;
        let queue_size = queue_size(transport, RECEIVE_QUEUE, options.receive_queue_size);
        let (buffers, buffer_len) =
            options.receive_buffers(queue_size, max_frame, large, mergeable);
        let receive = ReceiveOptions {
            queue_size: options.receive_queue_size,
            buffers,
            buffer_len,
            max_frame,
        };
        let sends_large = !negotiated_of(negotiated, Features::LARGE_TRANSMIT).is_empty();
        let transmit = TransmitOptions {
            queue_size: options.transmit_queue_size,
            large_buffers: match sends_large {
                true => options.large_transmit_buffers,
                false => 0,
            },
            max_frame: usize::from(mtu.min(options.mtu_max)) + ETHERNET_HEADER_LEN,
        };
        let control = match negotiated.has(Features::CTRL_VQ.bits()) {
            true => Some(ControlQueue::new(
                transport,
                CONTROL_QUEUE,
                CONTROL_QUEUE_SIZE,
                negotiated,
            )?),
            false => None,
        };
        Ok(Self {
            receiver: Receiver::new(transport, RECEIVE_QUEUE, &receive, negotiated)?,
            transmitter: Transmitter::new(transport, TRANSMIT_QUEUE, &transmit, negotiated)?,
            control,
        })
    }
}

impl<T: Transport> Net<T> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// As for [`Started::new`], and a configuration that is impossible.
    pub fn new(transport: T, options: Options) -> Result<Self> {
        let mut net = Self {
            device: Started::new(transport, options)?,
            announce: false,
            failure: None,
            failure_told: false,
            waker: None,
            announcements: 0,
        };
        net.hear_announce();
        Ok(net)
    }

    /// The device apart from its queues.
    pub fn control(&self) -> &Control<T> {
        self.device.control()
    }

    /// The device's own address.
    pub fn mac(&self) -> MacAddress {
        self.config().mac
    }

    /// The largest IP packet that can be sent. A frame has 14 bytes more.
    pub fn mtu(&self) -> u16 {
        self.device.mtu
    }

    /// The state of the link, as the device last said.
    pub fn link(&self) -> Link {
        self.config().link
    }

    /// Number of receive buffers and their length in bytes, the header of 12 included.
    pub fn receive_buffers(&self) -> (u16, usize) {
        self.device.queues.receiver.buffers()
    }

    /// Whether the device finishes checksums of frames that are sent ([`TxFrame::offload_checksum`]).
    pub fn offloads_checksums(&self) -> bool {
        self.device.queues.transmitter.offloads_checksums()
    }

    /// The longest frame that can be sent for the device to cut it into segments of this kind, if it does so
    /// ([`TxFrame::segment`]).
    pub fn max_large_frame(&self, kind: SegmentKind) -> Option<usize> {
        self.device.queues.transmitter.max_large_frame(kind)
    }

    /// What the device may leave to the driver when it receives ([`Command::GuestOffloads`]).
    pub fn guest_offloads(&self) -> Features {
        self.device.guest_offloads
    }

    /// What made the device unusable, until [`Self::restart`].
    pub fn failure(&self) -> Option<Error> {
        self.failure
    }

    /// The next frame that came in. Its buffer goes back to the device when it is dropped.
    ///
    /// A call takes back no more buffers than there are ([`Self::receive_buffers`]), however many bad frames the device
    /// supplies meanwhile: those were dropped and counted, and `None` does not mean that the queue is empty then.
    /// [`Self::prepare_to_sleep`] and [`Self::poll_ready`] say whether there is more, so let others have their turn and
    /// call again.
    ///
    /// # Errors
    ///
    /// The device broke the rules of the queue: nothing comes from it until [`Self::restart`].
    #[inline]
    pub fn receive(&mut self) -> Result<Option<RxFrame<'_, T>>> {
        let failure = &mut self.failure;
        let received = self.device.queues.receiver.receive(false);
        received.inspect_err(|error| {
            failure.get_or_insert(*error);
        })
    }

    /// Memory for a frame of `len` bytes, Ethernet header included, to be filled and sent. What it holds is left over from
    /// an earlier frame. One that is longer than the MTU allows has to be cut by the device ([`TxFrame::segment`]).
    ///
    /// # Errors
    ///
    /// [`Cause::QueueFull`]: all buffers are with the device; [`Self::poll_ready`] says when there is room.
    /// [`Cause::LinkDown`], or a length that the link can't take.
    #[inline]
    pub fn transmit(&mut self, len: usize) -> Result<TxFrame<'_, T>> {
        self.device.queues.transmitter.reserve(len)
    }

    /// Whether [`Self::transmit`] has a buffer, for a frame of any length. If not, [`Self::poll_ready`] waits for one from now on.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.device.queues.transmitter.has_room()
    }

    /// Tells the device about frames sent and buffers given back since the last time: at most one notification for each of
    /// the two queues. Call it after every round of work; [`Self::poll_ready`] does so too. It does not wait until frames have
    /// left: [`Self::flush_and_wait`] does.
    #[inline]
    pub fn flush(&mut self) {
        self.device.queues.transmitter.publish();
        self.device.queues.receiver.publish();
    }

    /// How many frames were sent that the device is not done with: it may lose them if it is reset, as it is when the driver
    /// is dropped. It is told of all of them first, so those that are left leave by themselves, unless the device broke the
    /// rules ([`Self::take_event`]).
    pub fn unsent(&mut self) -> u16 {
        self.device.queues.transmitter.unsent()
    }

    /// Does what [`Self::flush`] does, and sees to it that all frames have left: before the driver is dropped or the machine
    /// is switched off. `wait` is as in [`Self::command_and_wait`].
    ///
    /// # Errors
    ///
    /// [`Cause::Timeout`] if `wait` returned false first: the device still has what [`Self::unsent`] says. Or the device broke
    /// the rules of a queue.
    pub fn flush_and_wait(&mut self, mut wait: impl FnMut() -> bool) -> Result<()> {
        self.flush();
        while self.unsent() > 0 {
            if let Some(failure) = self.device.queues.failure() {
                return Err(failure);
            }
            if !wait() {
                let cause = Cause::Timeout;
                return Err(Error::on_queue(self.name(), TRANSMIT_QUEUE, cause));
            }
        }
        Ok(())
    }

    /// Sends a command to the device. It does not wait: ask the [`Reply`], or await it. [`Self::process`] and
    /// [`Self::poll_ready`] collect the answers.
    ///
    /// # Errors
    ///
    /// The feature that it needs was not agreed on ([`Cause::Unsupported`]), a parameter is impossible, or the control
    /// queue is full.
    pub fn command(&mut self, command: Command<'_>) -> Result<Reply> {
        let negotiated = self.device.negotiated();
        match &mut self.device.queues.control {
            Some(control) => control.submit(command, negotiated),
            None => Err(Error::new(self.name(), Cause::Unsupported)),
        }
    }

    /// Sends a command and looks for the answer. `wait` is called again and again while there is none; it may spin or do
    /// other things, and returns whether to wait on.
    ///
    /// # Errors
    ///
    /// As [`Self::command`]; the device refuses ([`Cause::CommandRefused`]) or answers wrongly; or [`Cause::Timeout`].
    pub fn command_and_wait(
        &mut self,
        command: Command<'_>,
        mut wait: impl FnMut() -> bool,
    ) -> Result<()> {
        let reply = self.command(command)?;
        loop {
            self.collect_answers();
            if let Some(result) = reply.get() {
                return result;
            }
            if let Some(failure) = self.device.queues.failure() {
                return Err(failure);
            }
            if !wait() {
                let cause = Cause::Timeout;
                return Err(Error::on_queue(self.name(), CONTROL_QUEUE, cause));
            }
        }
    }

    fn collect_answers(&mut self) {
        let Some(control) = &mut self.device.queues.control else {
            return;
        };
        let Setting {
            address,
            guest_offloads,
        } = control.collect();
        if let Some(address) = address {
            self.device
                .control()
                .change(|device| device.config.mac = address);
        }
        if let Some(offloads) = guest_offloads {
            self.device.guest_offloads = offloads;
        }
    }

    /// For an interrupt: sees to what it was about and wakes who sleeps in [`Self::poll_ready`].
    ///
    /// With MSI-X the vector says what it was about; otherwise [`Control`]'s `take_interrupt_causes` does. Without interrupts,
    /// call it with all causes now and then.
    ///
    /// # Errors
    ///
    /// The device says that it needs a reset ([`Self::restart`]), or its configuration can't be read.
    pub fn process(&mut self, causes: InterruptCauses) -> Result<()> {
        if causes.contains(InterruptCauses::QUEUE) {
            self.device.queues.count_interrupt();
            self.collect_answers();
        }
        let mut result = Ok(());
        if causes.contains(InterruptCauses::CONFIG) {
            result = self.config_changed().map(drop);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        result
    }

    /// To be called when the device announced a change of its configuration, by whoever does not call [`Self::process`].
    /// Says whether it is different, or there is something to be done; [`Self::take_event`] says what.
    ///
    /// # Errors
    ///
    /// As for [`Self::process`].
    pub fn config_changed(&mut self) -> Result<Option<()>> {
        let failure = &mut self.failure;
        let changed = self.device.control().config_changed();
        let changed = changed.inspect_err(|error| {
            failure.get_or_insert(*error);
        })?;
        self.follow_config();
        Ok(changed)
    }

    /// Sees to what the configuration says, whoever read it anew.
    fn follow_config(&mut self) {
        self.device.refresh();
        self.hear_announce();
    }

    /// Notes the wish to be announced, and tells the device that it was heard (spec 5.1.6.5.4).
    fn hear_announce(&mut self) {
        let active = &mut *self.device;
        if active.announcements_seen == active.announcements {
            return;
        }
        active.announcements_seen = active.announcements;
        // A full control queue leaves the wish standing in the configuration, to be read again with the next change.
        if self.command(Command::AnnounceAck).is_ok() {
            self.announce = true;
            self.announcements += 1;
        }
    }

    /// The next thing that a network stack should know of.
    pub fn take_event(&mut self) -> Option<Event> {
        self.follow_config();
        self.note_failures();
        if let Some(failure) = self.failure
            && !core::mem::replace(&mut self.failure_told, true)
        {
            Some(Event::Failed(failure))
        } else if core::mem::take(&mut self.device.link_changed) {
            Some(Event::LinkChanged)
        } else if core::mem::take(&mut self.announce) {
            Some(Event::Announce)
        } else {
            None
        }
    }

    fn note_failures(&mut self) {
        self.failure = self.failure.or(self.device.queues.failure());
    }

    /// Asks the device to interrupt when there is a frame to receive, or room to send for which somebody waits. `false` if
    /// there is something to do already, an event or what was asked for: then work until there is none of it, for which no
    /// interrupt will come. While frames are taken the device does not interrupt.
    ///
    /// It tells the device what [`Self::flush`] would.
    #[must_use = "says whether an interrupt will come"]
    pub fn prepare_to_sleep(&mut self) -> bool {
        self.flush();
        self.collect_answers();
        self.follow_config();
        let Queues {
            receiver,
            transmitter,
            ..
        } = &mut self.device.queues;
        // Interrupts are asked for first, and what came before is looked for afterwards: the other way round, what comes
        // in between would be noticed by nobody.
        let work = transmitter.room_came()
            || receiver.enable_interrupts()
            || transmitter.enable_interrupts_if_wanted();
        // Last, since looking for room may have found the transmit queue broken, for which no interrupt comes.
        self.note_failures();
        let failed = self.failure.is_some() && !self.failure_told;
        !(work || failed || self.device.link_changed || self.announce)
    }

    /// After [`Self::prepare_to_sleep`]: whether a frame came since, for which the device must have interrupted.
    pub fn frame_came(&mut self) -> bool {
        self.device.queues.receiver.enable_interrupts()
    }

    /// Ready when [`Self::prepare_to_sleep`] finds something to do. Else [`Self::process`] wakes the task, for which there
    /// is room for one.
    ///
    /// A task that awaits the interrupts itself has no need of it.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.prepare_to_sleep() {
            return Poll::Ready(());
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => self.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Resets the device and initialises it anew: after [`Event::Failed`]. Receive modes, filters, offloads and a MAC address
    /// that was set are as they were at first. Frames that were being sent may be lost.
    ///
    /// # Errors
    ///
    /// As for [`Self::new`]. The device is not in use then, and this can be tried again.
    pub fn restart(&mut self) -> Result<()> {
        let proof = self.device.reset()?;
        self.device.discard(&proof);
        let old = self.device.restart()?;
        let active = &mut *self.device;
        active.queues.take_stats_of(&old.queues);
        active.link_changed = old.link_changed || active.link != old.link;
        self.failure = None;
        self.failure_told = false;
        self.hear_announce();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// What the receive queue did.
    pub fn receive_stats(&self) -> ReceiveStats {
        self.device.queues.receiver.stats()
    }

    /// What the transmit queue did.
    pub fn transmit_stats(&self) -> TransmitStats {
        self.device.queues.transmitter.stats()
    }

    /// What commands did.
    pub fn control_stats(&self) -> ControlStats {
        let control = self.device.queues.control.as_ref();
        control.map_or(ControlStats::default(), ControlQueue::stats)
    }

    /// The driver's account of the device.
    pub fn report(&self) -> Report {
        let receive = self.receive_stats();
        let transmit = self.transmit_stats();
        let control = self.control_stats();
        Report {
            device: self.name(),
            negotiated: self.device.negotiated(),
            feature_names: FEATURE_NAMES,
            queues: self.device.queues.reports(),
            config_changes: self.changes_announced(),
            counters: vec![
                ("rx_packets", receive.packets),
                ("rx_bytes", receive.bytes),
                ("rx_merged", receive.merged),
                ("rx_large", receive.large),
                ("rx_trusted", receive.trusted),
                ("rx_no_buffer", receive.no_buffer),
                ("rx_runt", receive.runt),
                ("rx_too_long", receive.too_long),
                ("rx_bad_length", receive.bad_length),
                ("rx_bad_header", receive.bad_header),
                ("rx_bad_merge", receive.bad_merge),
                ("rx_bad_checksum", receive.bad_checksum),
                ("tx_packets", transmit.packets),
                ("tx_bytes", transmit.bytes),
                ("tx_large", transmit.large),
                ("tx_partial", transmit.partial),
                ("tx_full", transmit.full),
                ("tx_link_down", transmit.link_down),
                ("tx_runt", transmit.runt),
                ("tx_too_long", transmit.too_long),
                ("tx_failed", transmit.failed),
                ("commands_obeyed", control.obeyed),
                ("commands_refused", control.refused),
                ("announcements", self.announcements),
            ],
        }
    }
}

impl<T: Transport> Queues<T> {
    /// Counts an interrupt for every queue that it may have been meant for.
    fn count_interrupt(&mut self) {
        fn count<T: Transport, P: Payload>(queue: &mut Queue<T, P>) {
            if queue.has_completions() {
                queue.count_interrupt();
            }
        }
        count(self.receiver.queue_mut());
        if self.transmitter.is_waited_for() {
            count(self.transmitter.queue_mut());
        }
        if let Some(control) = &mut self.control {
            count(control.queue_mut());
        }
    }

    fn failure(&self) -> Option<Error> {
        let control = self.control.as_ref();
        let control = control.and_then(|control| control.queue().failure());
        let transmit = self.transmitter.queue().failure();
        self.receiver.queue().failure().or(transmit).or(control)
    }

    fn reports(&self) -> Vec<QueueReport> {
        let mut reports = vec![
            self.receiver.queue().report("receiveq1"),
            self.transmitter.queue().report("transmitq1"),
        ];
        reports.extend(
            self.control
                .as_ref()
                .map(|control| control.queue().report("controlq")),
        );
        reports
    }

    fn take_stats_of(&mut self, old: &Self) {
        self.receiver.set_stats(old.receiver.stats());
        self.transmitter.set_stats(old.transmitter.stats());
        if let (Some(control), Some(old)) = (&mut self.control, &old.control) {
            control.set_stats(old.stats());
        }
    }
}
