//! How a device is heard: MSI-X where it has it, else its interrupt line, else by looking now and then.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use core::time::Duration;

use vringlet::transport::pci::{self, Message};
use vringlet::transport::{InterruptCauses, mmio};

use super::transport::{Mmio, Pci};
use crate::platform::interrupts::{self, Event, Handler, lines};
use crate::platform::pci::{ConfigSpace, Function};
use crate::platform::time;

/// How often a device that can't interrupt is looked at.
const POLL: Duration = Duration::from_millis(1);
/// How often the configuration of such a device is looked at.
const CONFIG_POLL: Duration = Duration::from_millis(250);
/// When a device that was never heard is looked at for the first time after it was given something to do; and the longest
/// time between two looks.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// How much later than its completion an interrupt may come: the host may have much else to do between the two.
const LATE: Duration = Duration::from_millis(500);
/// Queues that get an event of their own; the last one's serves those beyond.
const MAX_QUEUES: u16 = 16;

/// How a device makes itself heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By a message per queue.
    MsiX,
    /// By an interrupt line, which it may share.
    Line(u32),
    /// Not at all: it is looked at every millisecond while it has something to do.
    Polled,
    /// It was not brought up.
    None,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MsiX => "msix",
            Self::Line(_) => "intx",
            Self::Polled => "polled",
            Self::None => "off",
        })
    }
}

/// The events of one device. Each is awaited by one task: the owner of that queue.
#[derive(Clone)]
pub struct Interrupts {
    /// The device's name, such as `blk0`.
    name: String,
    mode: Mode,
    heard: &'static Heard,
    /// The device's configuration changed.
    config: &'static Event,
    queues: &'static [Event],
}

/// What is known of a device's interrupts.
#[derive(Default)]
struct Heard {
    /// One came.
    once: AtomicBool,
    /// None comes, though the device was asked for them.
    never: AtomicBool,
}

impl Interrupts {
    /// Connects a PCI device: every queue gets a message of its own if the device and the kernel have that many.
    pub(super) fn of_pci(transport: &mut Pci, function: &Function, name: &str) -> Self {
        let queues = transport.queue_count().clamp(1, MAX_QUEUES);
        let mut this = Self::unconnected(queues, name);
        match this.connect_messages(transport, name) {
            Ok(()) => {
                this.mode = Mode::MsiX;
                return this;
            }
            Err(reason) => log::debug!("{name}: no MSI-X: {reason}"),
        }
        let line = function
            .interrupt_line()
            .map_err(|reason| format!("{reason}"));
        let connected = line.and_then(|line| {
            let status = transport
                .interrupt_status()
                .ok_or("it has no interrupt status")?;
            let handler = PciLine {
                status,
                events: this.clone(),
            };
            lines::connect_shared(line, name, Box::leak(Box::new(handler)))
                .map_err(|error| format!("{error}"))?;
            Ok(line)
        });
        match connected {
            Ok(line) => this.mode = Mode::Line(line),
            Err(reason) => log::warn!("{name}: polled: {reason}"),
        }
        this
    }

    /// Connects a virtio-mmio device to its line.
    pub(super) fn of_mmio(transport: &Mmio, line: Option<u32>, name: &str) -> Self {
        let mut this = Self::unconnected(MAX_QUEUES, name);
        let connected = line
            .ok_or("nothing says which interrupt line is its own".into())
            .and_then(|line| {
                let status = transport
                    .interrupt_status()
                    .ok_or("it has no interrupt status")?;
                let handler = MmioLine {
                    status,
                    events: this.clone(),
                };
                lines::connect_shared(line, name, Box::leak(Box::new(handler)))
                    .map_err(|error| format!("{error}"))?;
                Ok::<_, alloc::string::String>(line)
            });
        match connected {
            Ok(line) => this.mode = Mode::Line(line),
            Err(reason) => log::warn!("{name}: polled: {reason}"),
        }
        this
    }

    /// Of a device that has none and is not looked at either.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self {
            mode: Mode::None,
            ..Self::unconnected(1, "")
        }
    }

    fn unconnected(queues: u16, name: &str) -> Self {
        let queues: Vec<Event> = (0..queues).map(|_| Event::new()).collect();
        Self {
            name: name.into(),
            mode: Mode::Polled,
            heard: Box::leak(Box::default()),
            config: Box::leak(Box::new(Event::new())),
            queues: queues.leak(),
        }
    }

    /// Message 0 is for configuration changes, the next ones for the queues in their order. With fewer messages than
    /// that, the last one raises the events of all queues left; a single one raises everything.
    #[expect(unsafe_code, reason = "the kernel knows what its messages do")]
    fn connect_messages(
        &self,
        transport: &mut Pci,
        name: &str,
    ) -> Result<(), alloc::string::String> {
        let available = usize::from(transport.msix_vectors());
        if available == 0 {
            return Err("the device has none".into());
        }
        let wanted = 1 + self.queues.len();
        let count = wanted.min(available);
        let allocate = |name: &str, handler| {
            interrupts::allocate(name, handler).map_err(|error| format!("{error}"))
        };
        let mut messages = Vec::with_capacity(count);
        if count == 1 {
            let all: &'static Self = Box::leak(Box::new(self.clone()));
            messages.push(allocate(
                name,
                Box::leak(Box::new(move || all.raise(InterruptCauses::all()))),
            )?);
        } else {
            messages.push(allocate(&format!("{name} config"), self.config)?);
            let own = count - 2;
            for (index, event) in self.queues.iter().enumerate().take(own) {
                messages.push(allocate(&format!("{name} queue {index}"), event)?);
            }
            let rest = self.queues.get(own..).unwrap_or_default();
            let handler: &'static dyn Handler = match rest {
                [event] => event,
                rest => Box::leak(Box::new(move || {
                    rest.iter().for_each(Event::raise);
                    true
                })),
            };
            messages.push(allocate(&format!("{name} queue {own}"), handler)?);
        }
        let messages: Vec<Message> = messages
            .iter()
            // SAFETY: the vector's message goes to the local APIC, and does nothing but interrupt.
            .map(|vector| unsafe { Message::new(vector.address, vector.data) })
            .collect();
        transport
            .enable_msix(&mut ConfigSpace, &messages)
            .map_err(|error| format!("{error}"))
    }

    pub(super) fn raise(&self, causes: InterruptCauses) -> bool {
        if causes.contains(InterruptCauses::QUEUE) {
            self.queues.iter().for_each(Event::raise);
        }
        if causes.contains(InterruptCauses::CONFIG) {
            self.config.raise();
        }
        !causes.is_empty()
    }

    /// How the device is heard.
    pub fn mode(&self) -> Mode {
        match self.heard.never.load(Ordering::Relaxed) {
            true => Mode::Polled,
            false => self.mode,
        }
    }

    /// Waits until the configuration may have changed. One task.
    pub async fn config(&self) {
        match self.mode() {
            Mode::Polled | Mode::None => time::after(CONFIG_POLL).await,
            Mode::MsiX | Mode::Line(_) => self.config.wait().await,
        }
    }

    /// Waits until any of the first `queues` queues may have used buffers or the configuration may have changed, and says
    /// which of the two; `None` if the device must be asked. For a task that owns all of the device.
    ///
    /// `completed` says whether the device completed something for which it must have interrupted. It is asked now and then
    /// until the device is heard for the first time.
    pub async fn any(
        &self,
        queues: usize,
        completed: impl FnMut() -> bool,
    ) -> Option<InterruptCauses> {
        if matches!(self.mode(), Mode::Polled | Mode::None) {
            time::after(POLL).await;
            return None;
        }
        match self.heard.once.load(Ordering::Relaxed) {
            true => Some(self.causes(queues).await),
            false => self.first(|| self.causes(queues), completed).await,
        }
    }

    /// Waits for an interrupt of any of the first `queues` queues, or for a configuration change.
    async fn causes(&self, queues: usize) -> InterruptCauses {
        let queues = self.queues.get(..queues).unwrap_or(self.queues);
        poll_fn(|context| {
            let mut causes = InterruptCauses::empty();
            // Every one of them is looked at, so that none is left raised for the next time.
            for event in queues {
                if event.poll_wait(context).is_ready() {
                    causes |= InterruptCauses::QUEUE;
                }
            }
            if self.config.poll_wait(context).is_ready() {
                causes |= InterruptCauses::CONFIG;
            }
            match causes.is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(causes),
            }
        })
        .await
    }

    /// Waits for an interrupt of a device that was never heard, or until it completed something and does not interrupt.
    async fn first<F: Future>(
        &self,
        interrupt: impl Fn() -> F,
        mut completed: impl FnMut() -> bool,
    ) -> Option<F::Output> {
        let mut pause = FIRST_LOOK;
        let mut heard = time::timeout(pause, interrupt()).await;
        while heard.is_err() {
            if completed() {
                // Its interrupt may still be on its way.
                heard = time::timeout(LATE, interrupt()).await;
                break;
            }
            pause = (2 * pause).min(LONGEST_LOOK);
            heard = time::timeout(pause, interrupt()).await;
        }
        if heard.is_ok() {
            self.heard.once.store(true, Ordering::Relaxed);
            return heard.ok();
        }
        self.give_up_hearing();
        None
    }

    /// Waits until a device that has something to do is heard for the first time, or completed something and does not
    /// interrupt, in which case it is polled from then on. `completed` says whether the device completed something for
    /// which it must have interrupted, or `None` if it did not and has nothing to do any more.
    pub async fn listen(&self, mut completed: impl FnMut() -> Option<bool>) {
        let mut pause = FIRST_LOOK;
        loop {
            time::after(pause).await;
            match completed() {
                _ if self.is_heard() => return,
                None => return,
                Some(true) => break,
                Some(false) => pause = (2 * pause).min(LONGEST_LOOK),
            }
        }
        // Its interrupt may still be on its way.
        time::after(LATE).await;
        if !self.is_heard() {
            self.give_up_hearing();
        }
    }

    /// Whether the device ever interrupted.
    pub fn is_heard(&self) -> bool {
        self.heard.once.load(Ordering::Relaxed)
    }

    fn give_up_hearing(&self) {
        let (name, mode) = (&self.name, self.mode);
        log::warn!("{name}: done with a request without an interrupt ({mode}): polled");
        self.heard.never.store(true, Ordering::Relaxed);
        // Who waits for a change of the configuration would not hear of one either.
        self.config.raise();
    }

    /// Whether any of the first `queues` queues interrupted since the last call.
    #[inline]
    pub fn take(&self, queues: usize) -> bool {
        let queues = self.queues.get(..queues).unwrap_or(self.queues);
        // Every one of them is looked at, so that none is left raised for the next time.
        let raised = queues.iter().fold(false, |any, event| any | event.take());
        if raised && !self.is_heard() {
            self.heard.once.store(true, Ordering::Relaxed);
        }
        raised
    }

    /// Whether any of the first `queues` queues interrupted since [`Self::take`] was last called.
    #[inline]
    pub fn has_come(&self, queues: usize) -> bool {
        let queues = self.queues.get(..queues).unwrap_or(self.queues);
        queues.iter().any(Event::is_raised)
    }

    /// Waits until a device that can't interrupt is to be looked at again.
    pub async fn next_look(&self) {
        time::after(POLL).await;
    }

    /// Interrupts so far, for queue `index`. On a line, which does not say for which queue, those of the device.
    pub fn count(&self, index: u16) -> u64 {
        self.queues.get(usize::from(index)).map_or(0, Event::count)
    }
}

/// A PCI device on an interrupt line.
struct PciLine {
    status: pci::InterruptStatus,
    events: Interrupts,
}

impl Handler for PciLine {
    fn interrupt(&self) -> bool {
        // Reading the status takes the line down.
        self.events.raise(self.status.take())
    }
}

/// A virtio-mmio device on its interrupt line.
struct MmioLine {
    status: mmio::InterruptStatus,
    events: Interrupts,
}

impl Handler for MmioLine {
    fn interrupt(&self) -> bool {
        // Taking the causes acknowledges them, and the line goes down.
        self.events.raise(self.status.take())
    }
}
