//! Network cards: the driver of each, shared by the task that moves frames between it and its stack and by commands.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::pending;
use core::time::Duration;

use spin::Mutex;
use vringlet::net::{Command, Event, Features, Net, Options, ReceiveMode};
use vringlet::transport::InterruptCauses;
use vringlet::{Cause, Error, Report};

use super::{DeviceTransport, Driven, Found, Interrupts, Mode, owner};
use crate::platform::time::{self, Instant};

/// The driver of a card. It is a smoltcp device.
pub type Driver = Net<DeviceTransport>;

/// A network card.
pub struct Card {
    name: String,
    driver: Mutex<Driver>,
    interrupts: Interrupts,
}

/// How long a card may take to obey a command while nothing else can run.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a card that broke the rules is left alone.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// And one that could not be started again, after some tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the machine stays on for frames that cards have not sent yet, and how often that is looked at.
const SEND_PATIENCE: Duration = Duration::from_secs(2);
const SEND_POLL: Duration = Duration::from_millis(1);

/// The queues of a card without multiqueue: receive, transmit, control.
const QUEUES: usize = 3;

static CARDS: Mutex<Vec<&'static Card>> = Mutex::new(Vec::new());

/// All cards, in the order they were named.
pub fn all() -> Vec<&'static Card> {
    CARDS.lock().clone()
}

/// The card of this name; without a name the first one.
pub fn find(name: Option<&str>) -> Option<&'static Card> {
    let cards = CARDS.lock();
    let wanted = |card: &&&Card| name.is_none_or(|name| card.name == name);
    cards.iter().find(wanted).copied()
}

/// Before the machine is switched off: waits until all cards have sent what they were given. A card need not do so at once
/// (QEMU's takes its time with `tx=timer`), and what it still has then is lost.
pub async fn sent() {
    // One for all: many slow cards don't take longer than one.
    let deadline = time::now() + SEND_PATIENCE;
    for card in all() {
        if let Err(error) = card.sent(deadline).await {
            let unsent = card.with(Net::unsent);
            log::warn!("{}: {unsent} frames were not sent: {error}", card.name);
        }
    }
}

/// Makes the driver of a card.
pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, Error> {
    let mut driver = Driver::new(found.transport, Options::default())?;
    filter(&mut driver, &found.name);
    let card: &'static Card = Box::leak(Box::new(Card {
        name: found.name,
        driver: Mutex::new(driver),
        interrupts: found.interrupts,
    }));
    CARDS.lock().push(card);
    Ok(Box::new(card))
}

/// Frames for others are filtered out by the device, those for groups are not: IPv6 can't do without, and smoltcp does not
/// say which groups it is in.
fn filter(driver: &mut Driver, name: &str) {
    if !driver.negotiated().has(Features::CTRL_RX.bits()) {
        return;
    }
    for (mode, on) in [
        (ReceiveMode::AllMulticast, true),
        (ReceiveMode::Promiscuous, false),
    ] {
        let start = time::now();
        let wait = || start.elapsed() < PATIENCE;
        if let Err(error) = driver.command_and_wait(Command::Receive(mode, on), wait) {
            // It receives more than it need, or no multicast.
            log::warn!("{name}: {error}");
        }
    }
}

/// What a card has to tell its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The neighbours should hear where we are.
    Announce,
    /// It is as new: with the address that it had at first.
    Restarted,
}

impl Card {
    /// Its name, such as `net0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Uses the driver. Short: nothing else can meanwhile.
    pub fn with<R>(&self, f: impl FnOnce(&mut Driver) -> R) -> R {
        f(&mut self.driver.lock())
    }

    /// Has the card obey a command.
    pub async fn command(&self, command: Command<'_>) -> Result<(), Error> {
        let reply = self.with(|driver| driver.command(command))?;
        let result = time::timeout(owner::timeout(), reply).await;
        result.unwrap_or_else(|_| {
            let Report { device, queues, .. } = self.with(|driver| driver.report());
            // The control queue is the last one (spec 5.1.2).
            let queue = queues.last().map(|queue| queue.index);
            let cause = owner::unanswered();
            Err(Error {
                device,
                queue,
                cause,
            })
        })
    }

    async fn sent(&self, deadline: Instant) -> Result<(), Error> {
        loop {
            // It only looks: the waiting is done here, so that others can run meanwhile.
            match self.with(|driver| driver.flush_and_wait(|| false)) {
                Err(error) if error.cause == Cause::Timeout && time::now() < deadline => {
                    time::after(SEND_POLL).await;
                }
                result => return result,
            }
        }
    }

    /// For the card's task, before it polls its stack: sees to what the device has to say. What the stack must be told
    /// comes back; that the link changed it sees when it is polled.
    pub async fn tend(&self) -> Option<News> {
        match self.with(Net::take_event)? {
            Event::LinkChanged => None,
            Event::Announce => Some(News::Announce),
            Event::Failed(error) => {
                log::error!("{}: {error}", self.name);
                let mut pause = RESTART_PAUSE;
                while let Err(error) = self.restart(pause).await {
                    log::error!("{}: not started again: {error}", self.name);
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                log::warn!("{}: started again", self.name);
                Some(News::Restarted)
            }
        }
    }

    /// After a pause: a device that breaks again at once must not keep everybody from their work.
    async fn restart(&self, pause: Duration) -> Result<(), Error> {
        time::after(pause).await;
        self.with(|driver| {
            driver.restart()?;
            filter(driver, &self.name);
            Ok(())
        })
    }

    /// Whether the card interrupted since the last call: it has frames, or room to send for which somebody waited.
    pub fn interrupted(&self) -> bool {
        let interrupted = self.interrupts.take(QUEUES);
        if interrupted {
            // What it finds wrong is an event.
            let _ = self.with(|driver| driver.process(InterruptCauses::QUEUE));
        }
        interrupted
    }

    /// Whether it did, and was not asked yet.
    pub fn has_interrupted(&self) -> bool {
        self.interrupts.has_come(QUEUES)
    }

    /// For the card's task: waits until the card's configuration may have changed.
    pub async fn changed(&self) {
        self.interrupts.config().await;
        // What it finds wrong is an event.
        let _ = self.with(|driver| driver.process(InterruptCauses::CONFIG));
    }

    /// For the card's task: waits until a card that can't interrupt is to be looked at, or one that was never heard is heard
    /// or given up.
    pub async fn look(&self) {
        match self.interrupts.mode() {
            Mode::Polled => {
                self.interrupts.next_look().await;
                let _ = self.with(|driver| {
                    let causes = driver.take_interrupt_causes() | InterruptCauses::QUEUE;
                    driver.process(causes)
                });
            }
            Mode::MsiX | Mode::Line(_) if !self.interrupts.is_heard() => {
                let frame_came = || Some(self.with(Net::frame_came));
                self.interrupts.listen(frame_came).await;
            }
            Mode::MsiX | Mode::Line(_) | Mode::None => pending().await,
        }
    }
}

impl Driven for &'static Card {
    fn report(&self) -> Report {
        self.with(|driver| driver.report())
    }

    fn summary(&self) -> String {
        self.with(|driver| {
            let (mac, mtu, link) = (driver.mac(), driver.mtu(), driver.link());
            format!("mac {mac}, mtu {mtu}, {link}")
        })
    }
}
