//! The control queue (spec 5.1.6.5): commands that set what the device receives, and who it is.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use spin::Mutex;

use super::config::{Features, MacAddress};
use super::wire::{self, CommandHeader};
use crate::buffer::Buffer;
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{Chain, Completion, Payload, Queue, QueueOptions};
use crate::transport::Transport;

/// A way of receiving that can be turned on and off (spec 5.1.6.5.1). The discriminant is the number of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReceiveMode {
    /// Take every frame.
    Promiscuous = 0,
    /// Take every multicast frame.
    AllMulticast = 1,
    /// Take every unicast frame.
    AllUnicast = 2,
    /// Take no multicast frame.
    NoMulticast = 3,
    /// Take no unicast frame.
    NoUnicast = 4,
    /// Take no broadcast frame.
    NoBroadcast = 5,
}

/// What the device can be told over its control queue. A command needs its feature to be agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Turns a way of receiving on or off. Needs `CTRL_RX`; all but promiscuous and all-multicast need `CTRL_RX_EXTRA`.
    Receive(ReceiveMode, bool),
    /// Sets the addresses received besides the device's own, instead of those set before. Needs `CTRL_RX`.
    MacTable {
        /// Addresses of single stations.
        unicast: &'a [MacAddress],
        /// Addresses of groups.
        multicast: &'a [MacAddress],
    },
    /// Sets the device's own address. Needs `CTRL_MAC_ADDR`.
    MacAddress(MacAddress),
    /// Receives frames of this VLAN from now on. Needs `CTRL_VLAN`.
    VlanAdd(u16),
    /// Receives no frames of this VLAN any more. Needs `CTRL_VLAN`.
    VlanDelete(u16),
    /// Says that the wish to be announced was heard. Needs `GUEST_ANNOUNCE`.
    AnnounceAck,
    /// Leaves these to the driver from now on, of `GUEST_CSUM`, `GUEST_TSO4` and `GUEST_TSO6`, and no others. At first it is
    /// all that were agreed on. Needs `CTRL_GUEST_OFFLOADS`, and each of them itself.
    GuestOffloads(Features),
}

/// The most addresses in a table: more than any device filters by, and still a short command.
const MAC_TABLE_MAX: usize = 1024;
/// VLAN ids have 12 bits.
const VLAN_IDS: u16 = 4096;

impl Command<'_> {
    /// The features that the command needs.
    fn feature(&self) -> Features {
        match self {
            Self::Receive(ReceiveMode::Promiscuous | ReceiveMode::AllMulticast, _)
            | Self::MacTable { .. } => Features::CTRL_RX,
            Self::Receive(..) => Features::CTRL_RX_EXTRA,
            Self::MacAddress(_) => Features::CTRL_MAC_ADDR,
            Self::VlanAdd(_) | Self::VlanDelete(_) => Features::CTRL_VLAN,
            Self::AnnounceAck => Features::GUEST_ANNOUNCE,
            Self::GuestOffloads(offloads) => Features::CTRL_GUEST_OFFLOADS.union(*offloads),
        }
    }

    fn header(&self) -> CommandHeader {
        match self {
            Self::Receive(mode, _) => [wire::CTRL_RX, *mode as u8],
            Self::MacTable { .. } => wire::MAC_TABLE_SET,
            Self::MacAddress(_) => wire::MAC_ADDR_SET,
            Self::VlanAdd(_) => wire::VLAN_ADD,
            Self::VlanDelete(_) => wire::VLAN_DEL,
            Self::AnnounceAck => wire::ANNOUNCE_ACK,
            Self::GuestOffloads(_) => wire::GUEST_OFFLOADS_SET,
        }
    }

    /// The command-specific data.
    fn data(&self) -> Result<Vec<u8>, Cause> {
        let mut data = Vec::new();
        match *self {
            Self::Receive(_, on) => data.push(on.into()),
            Self::MacTable { unicast, multicast } => {
                if unicast.len() + multicast.len() > MAC_TABLE_MAX {
                    return Err(Cause::InvalidParameter("too many addresses"));
                }
                if !unicast.iter().all(|address| address.is_unicast()) {
                    return Err(Cause::InvalidParameter("not a unicast address"));
                }
                if !multicast.iter().all(|address| address.is_multicast()) {
                    return Err(Cause::InvalidParameter("not a multicast address"));
                }
                wire::append_mac_table(&mut data, unicast);
                wire::append_mac_table(&mut data, multicast);
            }
            Self::MacAddress(address) if !address.is_unicast() => {
                return Err(Cause::InvalidParameter("not a unicast address"));
            }
            Self::MacAddress(address) => data.extend_from_slice(&address.0),
            Self::VlanAdd(id) | Self::VlanDelete(id) if id >= VLAN_IDS => {
                return Err(Cause::InvalidParameter("VLAN id above 4095"));
            }
            Self::VlanAdd(id) | Self::VlanDelete(id) => data.extend_from_slice(&id.to_le_bytes()),
            Self::AnnounceAck => {}
            Self::GuestOffloads(offloads) => {
                if !Features::GUEST_OFFLOADS.contains(offloads) {
                    return Err(Cause::InvalidParameter("no offload of received frames"));
                }
                if offloads.intersects(Features::unusable_with(offloads)) {
                    let cause = Cause::InvalidParameter("an offload without what it needs");
                    return Err(cause);
                }
                data.extend_from_slice(&offloads.bits().to_le_bytes());
            }
        }
        Ok(data)
    }
}

/// The device's answer to a command, once it is there: a future, or to be asked with [`Self::get`]. Dropping it changes
/// nothing about the command.
#[must_use = "says whether the device obeyed"]
pub struct Reply(Arc<Mutex<Answer>>);

struct Answer {
    result: Option<Result<()>>,
    /// The result of a command that comes back without one.
    unanswered: Error,
    waker: Option<Waker>,
}

impl Reply {
    /// The answer, if it is there.
    pub fn get(&self) -> Option<Result<()>> {
        self.0.lock().result
    }
}

impl Future for Reply {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut answer = self.0.lock();
        match answer.result {
            Some(result) => Poll::Ready(result),
            None => {
                answer.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({:?})", self.get())
    }
}

/// What is different once commands were obeyed.
#[derive(Clone, Copy, Default)]
pub(super) struct Setting {
    /// The device's own address.
    pub(super) address: Option<MacAddress>,
    /// What is left to the driver.
    pub(super) guest_offloads: Option<Features>,
}

impl Setting {
    fn of(command: Command<'_>) -> Self {
        let mut setting = Self::default();
        match command {
            Command::MacAddress(address) => setting.address = Some(address),
            Command::GuestOffloads(offloads) => setting.guest_offloads = Some(offloads),
            _ => {}
        }
        setting
    }

    fn followed_by(self, later: Self) -> Self {
        Self {
            address: later.address.or(self.address),
            guest_offloads: later.guest_offloads.or(self.guest_offloads),
        }
    }
}

/// A command with the device.
pub(super) struct InFlight {
    data: Option<Buffer>,
    setting: Setting,
    answer: Arc<Mutex<Answer>>,
}

impl InFlight {
    fn answer(&self, result: Option<Result<()>>) {
        let mut answer = self.answer.lock();
        let result = result.unwrap_or(Err(answer.unanswered));
        answer.result.get_or_insert(result);
        let waker = answer.waker.take();
        drop(answer);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// However a command ends, nobody need wait any longer: the device was reset, or the driver is gone.
impl Drop for InFlight {
    fn drop(&mut self) {
        self.answer(None);
    }
}

impl Payload for InFlight {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        if let Some(data) = &self.data {
            chain.readable(data);
        }
    }
}

/// What commands did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlStats {
    /// Commands that the device obeyed.
    pub obeyed: u64,
    /// Commands that it refused or answered wrongly.
    pub refused: u64,
}

/// The control queue.
pub(super) struct ControlQueue<T: Transport> {
    queue: Queue<T, InFlight>,
    stats: ControlStats,
}

impl<T: Transport> ControlQueue<T> {
    pub(super) fn new(
        transport: &mut T,
        index: u16,
        queue_size: u16,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let options = QueueOptions {
            size: queue_size,
            header_len: wire::COMMAND_HEADER_LEN,
            footer_len: wire::ACK_LEN,
        };
        Ok(Self {
            queue: Queue::allocate(transport, index, options, negotiated)?,
            stats: ControlStats::default(),
        })
    }

    pub(super) fn queue(&self) -> &Queue<T, InFlight> {
        &self.queue
    }

    pub(super) fn queue_mut(&mut self) -> &mut Queue<T, InFlight> {
        &mut self.queue
    }

    pub(super) fn stats(&self) -> ControlStats {
        self.stats
    }

    pub(super) fn set_stats(&mut self, stats: ControlStats) {
        self.stats = stats;
    }

    /// Sends a command.
    pub(super) fn submit(&mut self, command: Command<'_>, negotiated: Negotiated) -> Result<Reply> {
        if !negotiated.has(command.feature().bits()) {
            return Err(self.queue.error(Cause::Unsupported));
        }
        let data = command.data().map_err(|cause| self.queue.error(cause))?;
        let answer = Arc::new(Mutex::new(Answer {
            result: None,
            unanswered: self.queue.error(Cause::NeedsReset),
            waker: None,
        }));
        let in_flight = InFlight {
            data: (!data.is_empty()).then(|| Buffer::from(data)),
            setting: Setting::of(command),
            answer: answer.clone(),
        };
        match self.queue.submit(&command.header(), in_flight) {
            Ok(_) => {
                self.queue.kick();
                Ok(Reply(answer))
            }
            Err(rejected) => Err(rejected.error),
        }
    }

    /// Hands the answers that are there to those who wait for them. Gives what is different now: of several commands for the
    /// same, as the one answered last says.
    ///
    /// There are no more answers than commands were in flight when this began, so it ends whatever the device does.
    pub(super) fn collect(&mut self) -> Setting {
        let mut setting = Setting::default();
        if self.queue.in_flight() == 0 {
            return setting;
        }
        while self.queue.has_completions() || self.queue.enable_interrupts() {
            let mut ack = [0; wire::ACK_LEN];
            match self.queue.poll(&mut ack) {
                Ok(Some(completion)) => {
                    let result = judge(&completion, ack);
                    match result {
                        Ok(()) => {
                            self.stats.obeyed += 1;
                            setting = setting.followed_by(completion.payload.setting);
                        }
                        Err(_) => self.stats.refused += 1,
                    }
                    let result = result.map_err(|cause| self.queue.error(cause));
                    completion.payload.answer(Some(result));
                }
                // What a broken queue has in flight is answered when the device is reset.
                Ok(None) | Err(_) => break,
            }
        }
        setting
    }
}

/// What a completion says about its command. An answer counts also where the device claims to have written more than that:
/// Cloud Hypervisor counted the command in until April 2026 (docs/decisions/used-lengths.md).
fn judge(completion: &Completion<InFlight>, [ack]: [u8; wire::ACK_LEN]) -> Result<(), Cause> {
    match (ack, completion.written) {
        (_, Ok(0)) => Err(Cause::NoStatus),
        (wire::OK, _) => Ok(()),
        (wire::ERR, _) => Err(Cause::CommandRefused),
        (_, Err(cause)) => Err(cause),
        (status, Ok(_)) => Err(Cause::UnknownStatus(status)),
    }
}
