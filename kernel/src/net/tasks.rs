//! The tasks: one per card, one for `lo`, and the services of each stack.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::pending;
use core::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use core::time::Duration;

use chrono::{DateTime, Utc};
use embassy_futures::select::{select, select3};
use embassy_futures::yield_now;
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;
use spin::{LazyLock, Mutex, Once};
use vringlet::net::{Net, SegmentKind};
use x86_64::instructions::random::RdRand;

use super::clock::Clock;
use super::loopback::Loopback;
use super::stack::Stack;
use super::tcp::Buffers;
use super::udp::UdpError;
use super::{Ipv4Setup, Lease, chargen, discard, echo, http, iperf};
use crate::devices::net::{self as cards, Card, News};
use crate::devices::rng;
use crate::platform::interrupts::Event;
use crate::platform::memory::heap;
use crate::platform::{fw_cfg, time};
use crate::runtime::task::{self, EndOfRound};

/// How long the boot waits for the entropy device.
const SEED_PATIENCE: Duration = Duration::from_millis(100);
/// How long the boot waits for DHCP servers. They go on being asked afterwards.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);
const LEASE_POLL: Duration = Duration::from_millis(2);
/// Each buffer of a connection that carries a lot is that part of the heap, but no more and no less than that.
const BULK_SHARE: usize = 128;
const MAX_BULK_BYTES: usize = 256 * 1024;
const MIN_BULK_BYTES: usize = 16 * 1024;

/// What makes the data of the status page.
type StatusJson = fn() -> String;

static STACKS: Mutex<Vec<&'static Stack>> = Mutex::new(Vec::new());
/// What the web servers of all interfaces share.
static WEB: http::Web = http::Web::new();
static LOOPBACK: Once<&'static Stack> = Once::new();

/// Starts networking on every card that the drivers brought up, and on `lo`; then gives DHCP servers a moment, so that
/// whatever comes next finds an address. `status` makes the data of the status page.
pub async fn init(status: StatusJson) {
    // One for all: a slow device delays the boot by no more than that.
    let deadline = time::now() + SEED_PATIENCE;
    if let Some(stack) = start_loopback(seed(deadline).await) {
        LOOPBACK.call_once(|| stack);
        serve(stack, status);
    }
    for card in cards::all() {
        match start(card, seed(deadline).await) {
            Some(stack) => {
                STACKS.lock().push(stack);
                serve(stack, status);
            }
            None => log::warn!("{}: its address is no host's: not used", card.name()),
        }
    }
    let deadline = time::now() + LEASE_PATIENCE;
    for stack in stacks() {
        leased(stack, deadline).await;
    }
}

/// Waits for the IPv4 address of an interface; not if its link is down, and not for ever.
pub async fn leased(stack: &Stack, deadline: time::Instant) -> Option<Lease> {
    loop {
        // A task that was just started may be late to look at its link, which counts as down until then.
        let down = stack.is_polled() && !stack.summary().link;
        let lease = stack.summary().lease;
        if lease.is_some() || down || time::now() >= deadline {
            return lease;
        }
        time::after(LEASE_POLL).await;
    }
}

/// The stacks of the cards, in the order of their names.
pub fn stacks() -> Vec<&'static Stack> {
    STACKS.lock().clone()
}

/// The stack by which our own addresses are reached.
pub fn loopback() -> Option<&'static Stack> {
    LOOPBACK.get().copied()
}

fn start(card: &'static Card, seed: u64) -> Option<&'static Stack> {
    let setup = setup(card.name());
    let stack = card.with(|driver| {
        let mac = EthernetAddress(driver.mac().0);
        let cuts_datagrams = driver.max_large_frame(SegmentKind::Udp).is_some();
        let mut stack = Stack::ethernet(card.name(), driver, mac, setup, seed, now())?;
        stack.set_cuts_datagrams(cuts_datagrams);
        Some(stack)
    })?;
    let stack = Box::leak(Box::new(stack));
    let served: &'static Served = Box::leak(Box::new(Served::new(card, stack)));
    task::spawn(served.tend());
    task::spawn(served.keep_time());
    task::serve(served);
    Some(stack)
}

fn start_loopback(seed: u64) -> Option<&'static Stack> {
    let mut device = Loopback::default();
    let stack = Box::leak(Box::new(Stack::loopback("lo", &mut device, seed, now())?));
    task::spawn(drive_loopback(device, stack));
    Some(stack)
}

/// `ip.NAME=` of the kernel's command line for one interface; `ip=` for net0, as two interfaces cannot have the same
/// address. DHCP otherwise.
fn setup(name: &str) -> Ipv4Setup {
    let general = || (name == "net0").then(|| fw_cfg::option("ip")).flatten();
    let Some(text) = fw_cfg::option(&alloc::format!("ip.{name}")).or_else(general) else {
        return Ipv4Setup::Dhcp;
    };
    text.parse().unwrap_or_else(|error| {
        log::warn!("{name}: ip={text}: {error}; using dhcp");
        Ipv4Setup::Dhcp
    })
}

/// Something a neighbour cannot guess: sequence numbers and ports follow from it. The entropy device is asked until
/// `deadline`; without it and without RDRAND it is only the moment.
async fn seed(deadline: time::Instant) -> u64 {
    let mut bytes = [0; 8];
    let left = time::now().until(deadline);
    if let Some(device) = rng::first()
        && !left.is_zero()
    {
        match time::timeout(left, device.fill(&mut bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("{}: {error}: not used for seeds", device.name()),
            Err(time::TimedOut) => log::warn!("{}: too slow for seeds", device.name()),
        }
    }
    // Of an answer that is not whole the bytes that came count.
    let device = u64::from_le_bytes(bytes);
    let processor = RdRand::new().and_then(RdRand::get_u64).unwrap_or_default();
    // The multiplier spreads what differs between two moments over all bits.
    let moment = time::now().as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    device ^ processor ^ moment
}

/// A card and its stack. Frames are taken and sent between the tasks, at the end of each round of the executor: what came in
/// wakes the tasks that wait for it, what they answer is sent once all of them have run, and the card is told once.
struct Served {
    card: &'static Card,
    stack: &'static Stack,
    /// The card was asked for an interrupt, and nothing was taken from it or found missing since.
    armed: AtomicBool,
    /// The card's task sees to it: it is left alone.
    tended: AtomicBool,
    /// The card has something for its task.
    news: Event,
    /// When the protocols want to send without having been asked, and when the task that keeps the time looks.
    due: AtomicI64,
    looks: AtomicI64,
    /// It is to look sooner.
    sooner: Event,
}

const NEVER: i64 = i64::MAX;

impl Served {
    fn new(card: &'static Card, stack: &'static Stack) -> Self {
        Self {
            card,
            stack,
            armed: AtomicBool::new(false),
            tended: AtomicBool::new(false),
            news: Event::new(),
            due: AtomicI64::new(NEVER),
            looks: AtomicI64::new(NEVER),
            sooner: Event::new(),
        }
    }

    /// Sends what is to be sent, and tells the card.
    fn send(&self) {
        if !self.stack.may_send() {
            return;
        }
        let sent = self.card.with(|driver| {
            let link = driver.link().up;
            let next = self.stack.send(driver, link, now())?;
            driver.flush();
            if !driver.has_room() {
                // It is to be asked for an interrupt when there is some.
                self.armed.store(false, Ordering::Relaxed);
            }
            Some(next)
        });
        if let Some(next) = sent {
            self.set_due(next.map_or(NEVER, |next| next.total_micros()));
        }
    }

    fn set_due(&self, due: i64) {
        self.due.store(due, Ordering::Relaxed);
        // If it looks too soon, it sees what it is to wait for by then: most of what is waited for comes before its time.
        if due < self.looks.load(Ordering::Relaxed) {
            self.sooner.raise();
        }
    }

    /// Has the stack polled when the protocols want it.
    async fn keep_time(&self) {
        loop {
            let due = self.due.load(Ordering::Relaxed);
            if due <= now().total_micros() {
                self.due.store(NEVER, Ordering::Relaxed);
                self.stack.wake();
                continue;
            }
            self.looks.store(due, Ordering::Relaxed);
            let looks = async {
                match due {
                    NEVER => pending().await,
                    due => until(Instant::from_micros(due)).await,
                }
            };
            select(self.sooner.wait(), looks).await;
        }
    }

    /// Sees to what the card has to say.
    async fn tend(&self) {
        loop {
            self.tended.store(true, Ordering::Relaxed);
            match self.card.tend().await {
                Some(News::Announce) => self.stack.announce(),
                Some(News::Restarted) => {
                    let mac = self.card.with(|driver| driver.mac().0);
                    self.stack.set_mac(EthernetAddress(mac));
                }
                None => self.stack.wake(),
            }
            self.tended.store(false, Ordering::Relaxed);
            self.armed.store(false, Ordering::Relaxed);
            select3(self.card.changed(), self.news.wait(), self.card.look()).await;
        }
    }
}

impl EndOfRound for Served {
    fn end_round(&self) -> bool {
        if self.tended.load(Ordering::Relaxed) {
            return false;
        }
        // Before more comes in: whoever that is for is to answer first.
        self.send();
        // A card that was not asked for an interrupt has frames without one.
        if !self.card.interrupted() && self.armed.load(Ordering::Relaxed) {
            return false;
        }
        self.armed.store(false, Ordering::Relaxed);
        let drained = self.card.with(|driver| self.stack.receive(driver, now()));
        !drained
    }

    fn prepare_to_sleep(&self) -> bool {
        if self.tended.load(Ordering::Relaxed) {
            return true;
        }
        self.send();
        if self.armed.load(Ordering::Relaxed) {
            return !self.card.has_interrupted();
        }
        let asked = self.card.with(Net::prepare_to_sleep);
        self.armed.store(asked, Ordering::Relaxed);
        if !asked {
            // Frames or room that came meanwhile are seen to at the end of the round; it may be something else.
            self.stack.wake();
            self.news.raise();
        }
        asked
    }
}

/// Until a socket has something to do, or the protocols' next timer is due.
async fn sleep(stack: &Stack, next: Option<Instant>) {
    let timer = async {
        match next {
            Some(next) => until(next).await,
            None => pending().await,
        }
    };
    select(stack.woken(), timer).await;
}

async fn drive_loopback(mut device: Loopback, stack: &'static Stack) {
    loop {
        let next = stack.poll(&mut device, true, now());
        if device.is_empty() {
            sleep(stack, next).await;
        }
        yield_now().await;
    }
}

fn serve(stack: &'static Stack, status: StatusJson) {
    spawn(echo::tcp(stack, KernelClock));
    spawn_datagrams(stack, echo::udp(stack));
    spawn(http::serve_status(stack, KernelClock, &WEB, status));
    for service in services() {
        match service {
            Service::Iperf3 => spawn(iperf::serve(stack, KernelClock, bulk_buffers())),
            Service::Discard => {
                spawn(discard::tcp(stack, KernelClock, bulk_buffers()));
                spawn_datagrams(stack, discard::udp(stack));
            }
            Service::Chargen => {
                spawn(chargen::tcp(stack, KernelClock));
                spawn_datagrams(stack, chargen::udp(stack));
            }
        }
    }
}

fn spawn(service: impl Future<Output = Infallible> + 'static) {
    task::spawn(async { match service.await {} });
}

fn spawn_datagrams(
    stack: &'static Stack,
    service: impl Future<Output = Result<Infallible, UdpError>> + 'static,
) {
    task::spawn(async {
        let Err(error) = service.await;
        log::warn!("{}: no service for datagrams: {error}", stack.name());
    });
}

/// What became of the requests to our web servers.
pub fn web_stats() -> http::WebStats {
    WEB.stats()
}

/// A service that runs only if it is asked for.
#[derive(Clone, Copy)]
enum Service {
    Iperf3,
    Discard,
    Chargen,
}

/// `services=NAME,...` of the kernel's command line.
fn services() -> &'static [Service] {
    static SET: LazyLock<Vec<Service>> = LazyLock::new(|| {
        let text = fw_cfg::option("services").unwrap_or_default();
        let names = text.split(',').filter(|name| !name.is_empty());
        let mut services = Vec::new();
        for name in names {
            match name {
                "iperf3" => services.push(Service::Iperf3),
                "discard" => services.push(Service::Discard),
                "chargen" => services.push(Service::Chargen),
                _ => log::warn!("services={name}: not one of iperf3, discard, chargen"),
            }
        }
        services
    });
    &SET
}

/// Buffers for connections that carry a lot: more than 64 KiB, so that TCP scales its windows, if memory allows for it.
fn bulk_buffers() -> Buffers {
    let (_, heap) = heap::usage();
    let each = (heap / BULK_SHARE).clamp(MIN_BULK_BYTES, MAX_BULK_BYTES);
    Buffers {
        receive: each,
        send: each,
    }
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now().as_micros()).unwrap_or(i64::MAX))
}

async fn until(instant: Instant) {
    let left = instant.total_micros().saturating_sub(now().total_micros());
    time::after(Duration::from_micros(u64::try_from(left).unwrap_or(0))).await;
}

/// The kernel's clock, for the services.
#[derive(Clone, Copy)]
pub struct KernelClock;

impl Clock for KernelClock {
    fn now(self) -> Duration {
        Duration::from_nanos(time::now().as_nanos())
    }

    fn date(self) -> Option<DateTime<Utc>> {
        time::wall()
    }

    fn idle(self) -> Duration {
        task::idle().0
    }

    fn after(self, duration: Duration) -> impl Future<Output = ()> {
        time::after(duration)
    }
}
