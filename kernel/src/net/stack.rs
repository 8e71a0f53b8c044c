//! One interface's protocols: a smoltcp [`Interface`], its sockets, and the poll that moves both along.
//!
//! The stack does not own the device: whoever drives the device calls [`Stack::receive`] when the device has something, and
//! [`Stack::send`] when that or a socket left something to be sent, and at the instant that it returned the last time.
//! Nothing ticks in between.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use smoltcp::iface::{
    Config, Drops, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{Device, Medium};
use smoltcp::socket::{AnySocket, Socket, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint, Ipv4Address,
    Ipv6Address,
};
use spin::Mutex;

use super::addresses::{Addresses, Ipv4Setup};
use super::announce;
use super::backlog::Backlog;

/// Frames taken from the device before other tasks get their turn.
const BURST: usize = 64;
/// A poll that could not send everything (the device is full) is not repeated sooner.
const RETRY: Duration = Duration::from_millis(1);
/// How long a connection that nobody uses any more may take to close. Longer than TIME-WAIT (10 s in smoltcp).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);
/// How many of them there may be.
const MAX_CLOSING: usize = 128;
/// Local ports of connections made from here (RFC 6335).
const FIRST_EPHEMERAL_PORT: u16 = 49152;

/// One interface's protocols.
pub struct Stack {
    name: String,
    inner: Mutex<Inner>,
    /// A socket was used, so that there is likely something to send.
    used: AtomicBool,
    /// A frame came in, so that there may be.
    received: AtomicBool,
    runner: AtomicWaker,
    /// The card makes several datagrams of one frame.
    cuts_datagrams: bool,
}

/// What the lock protects.
pub(super) struct Inner {
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) backlogs: Vec<Backlog>,
    addresses: Option<Addresses>,
    closing: VecDeque<Closing>,
    next_port: u16,
    announce: bool,
    mtu: usize,
    polled: bool,
    now: Instant,
}

/// A connection that nobody uses any more; it is kept until its last segments are acknowledged.
struct Closing {
    handle: SocketHandle,
    deadline: Instant,
}

/// What the shell and the status page show of a stack.
pub struct Summary {
    /// The interface's name, such as `net0`.
    pub name: String,
    /// Whether the link is up.
    pub link: bool,
    /// The hardware address; loopback has none.
    pub mac: Option<EthernetAddress>,
    /// The largest IP packet.
    pub mtu: usize,
    /// All addresses.
    pub addresses: Vec<IpCidr>,
    /// The IPv4 lease or the static setting.
    pub lease: Option<super::addresses::Lease>,
    /// The default routers.
    pub gateways: Vec<IpAddress>,
    /// What neither a socket got nor a neighbour.
    pub drops: Drops,
}

/// One socket, for the shell and the status page.
pub struct SocketSummary {
    /// `tcp`, `udp`, `icmp`, ...
    pub protocol: &'static str,
    /// Where it listens or what it is bound to.
    pub local: Place,
    /// Whom it talks to.
    pub remote: Place,
    /// The state of a TCP connection.
    pub state: Option<tcp::State>,
    /// It is a TCP connection that we ended: nobody here uses it any more.
    pub closing: bool,
    /// Bytes that wait to be read, and bytes not yet acknowledged.
    pub queued: (usize, usize),
    /// Packets for which there was no room. TCP's sender sends them again.
    pub dropped: u64,
}

/// One end of a socket's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is none.
    None,
    /// A port on all addresses.
    Port(u16),
    /// An address and a port.
    Endpoint(IpEndpoint),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Port(port) => write!(f, "*:{port}"),
            Self::Endpoint(endpoint) => endpoint.fmt(f),
        }
    }
}

impl From<IpListenEndpoint> for Place {
    fn from(endpoint: IpListenEndpoint) -> Self {
        match endpoint.addr {
            Some(address) => Self::Endpoint(IpEndpoint::new(address, endpoint.port)),
            None => Self::Port(endpoint.port),
        }
    }
}

impl Stack {
    /// The stack of an Ethernet device. `seed` makes its sequence numbers, ports and transaction ids hard to guess.
    ///
    /// `None` if the address is not one that an interface may have (a broadcast or multicast address).
    pub fn ethernet<D: Device + ?Sized>(
        name: &str,
        device: &mut D,
        mac: EthernetAddress,
        setup: Ipv4Setup,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        if !mac.is_unicast() || device.capabilities().medium != Medium::Ethernet {
            return None;
        }
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = seed;
        let interface = Interface::new(config, device, now);
        let mut sockets = SocketSet::new(Vec::new());
        let addresses = Addresses::new(name, mac, setup, &mut sockets);
        let mtu = device.capabilities().ip_mtu();
        Some(Self::with(
            name,
            interface,
            sockets,
            Some(addresses),
            mtu,
            seed,
            now,
        ))
    }

    /// The stack of a loopback device: it takes whatever is sent, so all the machine's own addresses are reached
    /// through it.
    pub fn loopback<D: Device + ?Sized>(
        name: &str,
        device: &mut D,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        if device.capabilities().medium != Medium::Ip {
            return None;
        }
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, device, now);
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for more than two.
            let _ = addresses.push(IpCidr::new(IpAddress::from(Ipv4Address::LOCALHOST), 8));
            let _ = addresses.push(IpCidr::new(IpAddress::from(Ipv6Address::LOCALHOST), 128));
        });
        // A route by way of itself makes it both send and accept packets for any address.
        let _ = interface
            .routes_mut()
            .add_default_ipv4_route(Ipv4Address::LOCALHOST);
        let _ = interface
            .routes_mut()
            .add_default_ipv6_route(Ipv6Address::LOCALHOST);
        interface.set_any_ip(true);
        let mtu = device.capabilities().ip_mtu();
        Some(Self::with(
            name,
            interface,
            SocketSet::new(Vec::new()),
            None,
            mtu,
            seed,
            now,
        ))
    }

    fn with(
        name: &str,
        interface: Interface,
        sockets: SocketSet<'static>,
        addresses: Option<Addresses>,
        mtu: usize,
        seed: u64,
        now: Instant,
    ) -> Self {
        let span = u64::from(u16::MAX - FIRST_EPHEMERAL_PORT) + 1;
        Self {
            name: name.into(),
            inner: Mutex::new(Inner {
                interface,
                sockets,
                backlogs: Vec::new(),
                closing: VecDeque::new(),
                // The upper half: smoltcp's generator starts from the same seed.
                next_port: FIRST_EPHEMERAL_PORT + ((seed >> 32) % span) as u16,
                announce: false,
                addresses,
                mtu,
                polled: false,
                now,
            }),
            used: AtomicBool::new(true),
            received: AtomicBool::new(false),
            runner: AtomicWaker::new(),
            cuts_datagrams: false,
        }
    }

    /// Says whether the card makes several datagrams of one frame, of which smoltcp knows nothing.
    pub fn set_cuts_datagrams(&mut self, cuts: bool) {
        self.cuts_datagrams = cuts;
    }

    /// Whether it does.
    pub(super) fn cuts_datagrams(&self) -> bool {
        self.cuts_datagrams
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes what the device received, then sends what is to be sent. Returns when it wants to be called again if
    /// nothing happens before; `None` means never.
    pub fn poll<D: Device + ?Sized>(
        &self,
        device: &mut D,
        link: bool,
        now: Instant,
    ) -> Option<Instant> {
        let drained = self.receive(device, now);
        self.used.store(true, Ordering::Relaxed);
        let next = self.send(device, link, now).flatten();
        match drained {
            true => next,
            false => Some(now),
        }
    }

    /// Takes frames from the device, and wakes who waits for them. False if there may be more.
    pub fn receive<D: Device + ?Sized>(&self, device: &mut D, now: Instant) -> bool {
        let (any, drained) = self.inner.lock().receive(device, now);
        if any {
            self.received.store(true, Ordering::Relaxed);
        }
        drained
    }

    /// Whether [`send`](Self::send) has a reason to look.
    pub fn may_send(&self) -> bool {
        self.used.load(Ordering::Relaxed) || self.received.load(Ordering::Relaxed)
    }

    /// Sends what frames, sockets and time gave to be sent. Returns when it wants to be called again if nothing happens before
    /// (`Some(None)` means never), or `None` if there was no reason to look at all.
    pub fn send<D: Device + ?Sized>(
        &self,
        device: &mut D,
        link: bool,
        now: Instant,
    ) -> Option<Option<Instant>> {
        let used = take(&self.used);
        let received = take(&self.received);
        (used || received).then(|| self.inner.lock().send(device, link, used, now))
    }

    /// Whether it was ever polled. Before that nothing is known of its link, and it has no address, not even a static one.
    pub fn is_polled(&self) -> bool {
        self.inner.lock().polled
    }

    /// Done when a socket was used, so that there may be something to send.
    pub async fn woken(&self) {
        poll_fn(|context| self.poll_woken(context)).await;
    }

    /// As [`woken`](Self::woken), for a future that waits for the device as well.
    pub fn poll_woken(&self, context: &mut Context<'_>) -> Poll<()> {
        self.runner.register(context.waker());
        match self.used.swap(false, Ordering::AcqRel) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Asks whoever drives the device to poll.
    pub fn wake(&self) {
        self.used.store(true, Ordering::Release);
        self.runner.wake();
    }

    /// The card has another hardware address now: everything that follows from it starts over, as on a new link.
    pub fn set_mac(&self, mac: EthernetAddress) {
        self.with_inner(|inner| {
            if let Some(addresses) = inner.addresses.as_mut().filter(|_| mac.is_unicast()) {
                inner
                    .interface
                    .set_hardware_addr(HardwareAddress::Ethernet(mac));
                addresses.set_mac(mac);
            }
        });
    }

    /// A number for what must be told apart: the identifier of a ping.
    pub fn identifier(&self) -> u16 {
        self.inner.lock().ephemeral_port()
    }

    /// Tells the neighbours our addresses, as a device asks for after a migration.
    pub fn announce(&self) {
        self.inner.lock().announce = true;
        self.wake();
    }

    /// Whether packets to this address are taken: it is one of the interface's own, or this is loopback, which takes all.
    pub fn accepts(&self, address: IpAddress) -> bool {
        self.inner.lock().interface.has_ip_addr(address)
    }

    /// Whether the address is on one of the interface's own networks.
    pub fn is_neighbour(&self, address: IpAddress) -> bool {
        self.inner
            .lock()
            .interface
            .ip_addrs()
            .iter()
            .any(|own| own.contains_addr(&address))
    }

    /// Whether there is a default router for addresses of this kind.
    pub fn has_route(&self, address: IpAddress) -> bool {
        let inner = self.inner.lock();
        let routes = inner.interface.routes();
        match address {
            IpAddress::Ipv4(_) => routes.get_default_ipv4_route().is_some(),
            IpAddress::Ipv6(_) => routes.get_default_ipv6_route().is_some(),
        }
    }

    /// What there is to show of it.
    pub fn summary(&self) -> Summary {
        let inner = self.inner.lock();
        let routes = inner.interface.routes();
        let gateways = [
            routes.get_default_ipv4_route(),
            routes.get_default_ipv6_route(),
        ];
        let addresses = inner.addresses.as_ref();
        Summary {
            name: self.name.clone(),
            link: addresses.is_none_or(Addresses::link),
            mac: addresses.map(Addresses::mac),
            mtu: inner.mtu,
            addresses: inner.interface.ip_addrs().to_vec(),
            lease: addresses.and_then(|addresses| addresses.lease().cloned()),
            drops: inner.interface.drops(),
            gateways: match addresses {
                Some(_) => gateways
                    .into_iter()
                    .flatten()
                    .map(|route| route.via_router)
                    .collect(),
                None => Vec::new(),
            },
        }
    }

    /// Its sockets.
    pub fn sockets(&self) -> Vec<SocketSummary> {
        let inner = self.inner.lock();
        inner
            .sockets
            .iter()
            .map(|(_, socket)| SocketSummary::of(socket))
            .collect()
    }

    /// Runs `f` on the stack, then has it polled.
    pub(super) fn with_inner<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let result = f(&mut self.inner.lock());
        self.wake();
        result
    }

    /// Runs `f` on a listener's backlog.
    pub(super) fn with_backlog<R>(
        &self,
        index: usize,
        f: impl FnOnce(&mut Backlog, &SocketSet<'static>) -> Option<R>,
    ) -> Option<R> {
        let inner = &mut *self.inner.lock();
        f(inner.backlogs.get_mut(index)?, &inner.sockets)
    }

    /// Runs `f` on a socket.
    pub(super) fn with_socket<S: AnySocket<'static>, R>(
        &self,
        handle: SocketHandle,
        f: impl FnOnce(&mut S) -> R,
    ) -> R {
        f(self.inner.lock().sockets.get_mut::<S>(handle))
    }
}

impl Inner {
    /// `used`: a socket was used.
    fn send<D: Device + ?Sized>(
        &mut self,
        device: &mut D,
        link: bool,
        used: bool,
        now: Instant,
    ) -> Option<Instant> {
        self.polled = true;
        self.now = now;
        self.interface.poll_maintenance(now);
        let address_work = self.update_addresses(device, link, now);
        let sockets = self.send_all(device, used, now);
        // A connection may have timed out while sending, and what was at its limit before may have room by now.
        if self.backlogs.iter().any(Backlog::is_waiting) {
            self.update_backlogs();
        }
        let close = self.end_closing();
        let next = [sockets, address_work, close].into_iter().flatten().min();
        next.map(|next| next.max(now + RETRY))
    }

    /// Sends what the sockets have. Returns when they have more; that is now if the device takes no more.
    fn send_all<D: Device + ?Sized>(
        &mut self,
        device: &mut D,
        used: bool,
        now: Instant,
    ) -> Option<Instant> {
        let is_due = |next: Option<Instant>| next.is_some_and(|next| next <= now);
        // A frame alone leaves seldom something to be sent, and to ask costs less than to try.
        let next = match used {
            true => Some(now),
            false => self.interface.poll_at(now, &self.sockets),
        };
        if !is_due(next) {
            return next;
        }
        // Mostly one pass does it, and to ask whether costs less than another one. If not, there is likely to be much.
        let sent = self.interface.poll_egress(now, device, &mut self.sockets);
        let next = self.interface.poll_at(now, &self.sockets);
        if sent == PollResult::None || !is_due(next) {
            return next;
        }
        while self.interface.poll_egress(now, device, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
        self.interface.poll_at(now, &self.sockets)
    }

    /// Takes frames from the device. Says whether there were any, and whether these were all.
    fn receive<D: Device + ?Sized>(&mut self, device: &mut D, now: Instant) -> (bool, bool) {
        self.now = now;
        for frame in 0..BURST {
            match self
                .interface
                .poll_ingress_single(now, device, &mut self.sockets)
            {
                PollIngressSingleResult::None => return (frame > 0, true),
                PollIngressSingleResult::PacketProcessed => {}
                // The frame may have taken a listening socket. The next frame may ask for another one, so this cannot
                // wait for the end of the burst.
                PollIngressSingleResult::SocketStateChanged => self.update_backlogs(),
            }
        }
        (true, false)
    }

    fn update_addresses<D: Device + ?Sized>(
        &mut self,
        device: &mut D,
        link: bool,
        now: Instant,
    ) -> Option<Instant> {
        let addresses = self.addresses.as_mut()?;
        let changed = addresses.update(&mut self.interface, &mut self.sockets, link, now);
        if (changed || core::mem::take(&mut self.announce)) && link {
            announce::addresses(device, now, addresses.mac(), self.interface.ip_addrs());
        }
        if addresses.solicits(now) {
            announce::router_solicitation(device, now, addresses.mac());
        }
        addresses.next_work()
    }

    pub(super) fn update_backlogs(&mut self) {
        for backlog in &mut self.backlogs {
            if !backlog.is_settled(&self.sockets) {
                backlog.update(&mut self.sockets, self.now);
            }
        }
    }

    /// Closes a TCP socket in the background: what it still has to send is sent, then it is removed.
    pub(super) fn close(&mut self, handle: SocketHandle) {
        if self.closing.len() >= MAX_CLOSING {
            // Best one that has nothing left to send, else the oldest.
            let sent = |closing: &Closing| {
                let state = self.sockets.get::<tcp::Socket<'_>>(closing.handle).state();
                matches!(state, tcp::State::TimeWait | tcp::State::FinWait2)
            };
            let index = self.closing.iter().position(sent).unwrap_or(0);
            if let Some(given_up) = self.closing.remove(index) {
                self.sockets.remove(given_up.handle);
            }
        }
        let deadline = self.now + CLOSE_TIMEOUT;
        self.closing.push_back(Closing { handle, deadline });
    }

    fn end_closing(&mut self) -> Option<Instant> {
        if self.closing.is_empty() {
            return None;
        }
        let (sockets, now) = (&mut self.sockets, self.now);
        self.closing.retain(|closing| {
            let socket = sockets.get::<tcp::Socket<'_>>(closing.handle);
            // A closed socket keeps its peer's address until the reset is sent.
            let sent = socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none();
            let over = sent || closing.deadline <= now;
            if over {
                sockets.remove(closing.handle);
            }
            !over
        });
        self.closing.iter().map(|closing| closing.deadline).min()
    }

    /// A local port that no socket uses.
    pub(super) fn ephemeral_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
            // There are far fewer sockets than ports.
            let mut tcp = self
                .sockets
                .iter()
                .filter_map(|(_, socket)| tcp::Socket::downcast(socket));
            if !tcp.any(|socket| {
                socket
                    .local_endpoint()
                    .is_some_and(|local| local.port == port)
            }) {
                return port;
            }
        }
    }
}

impl SocketSummary {
    fn of(socket: &Socket<'_>) -> Self {
        let bare = |protocol: &'static str, local: Place, queued: (usize, usize), dropped| Self {
            protocol,
            local,
            remote: Place::None,
            state: None,
            closing: false,
            queued,
            dropped,
        };
        match socket {
            Socket::Tcp(tcp) => Self {
                protocol: "tcp",
                local: tcp
                    .local_endpoint()
                    .map_or_else(|| tcp.listen_endpoint().into(), Place::Endpoint),
                remote: tcp.remote_endpoint().map_or(Place::None, Place::Endpoint),
                state: Some(tcp.state()),
                closing: is_closing(tcp.state()),
                queued: (tcp.recv_queue(), tcp.send_queue()),
                dropped: 0,
            },
            Socket::Udp(udp) => bare(
                "udp",
                udp.endpoint().into(),
                (udp.recv_queue(), udp.send_queue()),
                udp.dropped(),
            ),
            Socket::Icmp(icmp) => bare(
                "icmp",
                Place::None,
                (icmp.recv_queue(), icmp.send_queue()),
                icmp.dropped(),
            ),
            Socket::Raw(raw) => bare(
                "icmpv6",
                Place::None,
                (raw.recv_queue(), raw.send_queue()),
                raw.dropped(),
            ),
            Socket::Dhcpv4(_) => bare("dhcp", Place::Port(68), (0, 0), 0),
        }
    }
}

/// Takes a flag down; says whether it was up.
fn take(flag: &AtomicBool) -> bool {
    // Mostly it is not, and a load is cheaper than a swap.
    flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Acquire)
}

fn is_closing(state: tcp::State) -> bool {
    use tcp::State;
    match state {
        State::Listen
        | State::SynSent
        | State::SynReceived
        | State::Established
        | State::CloseWait => false,
        State::Closed
        | State::FinWait1
        | State::FinWait2
        | State::Closing
        | State::LastAck
        | State::TimeWait => true,
    }
}
