//! Interrupts: vectors given out on demand, counted, and turned into wake-ups of tasks.
//!
//! A device with MSI or MSI-X asks for a vector with [`allocate`] and is told which message to send. A device with a
//! shared line (INTx, ISA) is connected in [`lines`]. Either way its [`Handler`] runs with interrupts off, on whatever
//! stack was in use: it sets flags, reads what must be read to silence the device, and wakes tasks. It takes no lock
//! that a task may hold and allocates nothing. [`Event`] is the handler most devices need.

pub mod lapic;
pub mod lines;

use alloc::string::{String, ToString};
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use spin::Once;

use crate::platform::time;

/// Vectors below belong to exceptions.
pub const FIRST_VECTOR: u8 = 0x20;
/// The two 8259s are moved here: 16 vectors, in use or not.
const PIC_VECTORS: u8 = 0x20;
const FIRST_DEVICE_VECTOR: u8 = 0x30;
const LAST_DEVICE_VECTOR: u8 = 0xef;
const TIMER_VECTOR: u8 = 0xf0;
const ERROR_VECTOR: u8 = 0xfe;
const SPURIOUS_VECTOR: u8 = 0xff;

/// What is called when an interrupt arrives. See the module's documentation for what it may do.
pub trait Handler: Sync {
    /// Serves the interrupt; returns whether it was this handler's device that raised it.
    fn interrupt(&self) -> bool;
}

impl<F: Fn() -> bool + Sync> Handler for F {
    fn interrupt(&self) -> bool {
        self()
    }
}

/// A message-signalled interrupt: what the device must write where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The processor's vector.
    pub number: u8,
    /// The message address.
    pub address: u64,
    /// The message data.
    pub data: u32,
}

/// Why an interrupt could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// All vectors are given out.
    NoVectors,
    /// There is no local APIC, so no message can be received.
    NoLocalApic,
    /// No interrupt controller has this input.
    NoSuchLine(u32),
    /// Too many devices share the line.
    LineFull(u32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVectors => write!(f, "all interrupt vectors are in use"),
            Self::NoLocalApic => write!(f, "there is no local APIC to send messages to"),
            Self::NoSuchLine(line) => write!(f, "no interrupt controller has input {line}"),
            Self::LineFull(line) => write!(f, "too many devices share interrupt line {line}"),
        }
    }
}

struct Owner {
    name: String,
    handler: &'static dyn Handler,
}

struct Slot {
    count: AtomicU64,
    owner: Once<Owner>,
}

static SLOTS: [Slot; 256] = [const {
    Slot {
        count: AtomicU64::new(0),
        owner: Once::new(),
    }
}; 256];
static SPURIOUS: AtomicU64 = AtomicU64::new(0);

/// Silences the 8259s, turns the local APIC on, finds the I/O APICs; then lets interrupts in.
pub fn init() {
    // In this order: an interrupt that an 8259 is already asking for must be withdrawn while the local APIC still
    // listens to it (QEMU raises an exception otherwise).
    lines::silence_pics();
    lapic::init();
    lines::init();
    x86_64::instructions::interrupts::enable();
}

/// Gives out a vector. The handler stays connected for good.
pub fn allocate(name: &str, handler: &'static dyn Handler) -> Result<Vector, Error> {
    let destination = lapic::id().ok_or(Error::NoLocalApic)?;
    let number = claim(name, handler)?;
    Ok(Vector {
        number,
        // Physical destination, no redirection hint; edge-triggered, fixed delivery.
        address: 0xfee0_0000 | u64::from(destination & 0xff) << 12,
        data: u32::from(number),
    })
}

fn claim(name: &str, handler: &'static dyn Handler) -> Result<u8, Error> {
    // Tasks run on one processor and one after the other: nobody takes the slot between the test and the call.
    let free = |number: &u8| SLOTS[usize::from(*number)].owner.get().is_none();
    let number = (FIRST_DEVICE_VECTOR..=LAST_DEVICE_VECTOR)
        .find(free)
        .ok_or(Error::NoVectors)?;
    name_vector(number, name, handler);
    Ok(number)
}

fn name_vector(number: u8, name: &str, handler: &'static dyn Handler) {
    SLOTS[usize::from(number)].owner.call_once(|| Owner {
        name: name.to_string(),
        handler,
    });
}

/// Called by the trap entry for every vector that is not an exception.
pub(crate) fn dispatch(vector: u8) {
    let slot = &SLOTS[usize::from(vector)];
    slot.count.fetch_add(1, Ordering::Relaxed);
    if !(FIRST_DEVICE_VECTOR..=LAST_DEVICE_VECTOR).contains(&vector) {
        return dispatch_other(vector);
    }
    let owner = slot.owner.get();
    if !owner.is_some_and(|owner| owner.handler.interrupt()) {
        SPURIOUS.fetch_add(1, Ordering::Relaxed);
    }
    lapic::end_of_interrupt();
}

/// Of what is no device's vector. A function of its own, so that what it needs costs nothing when a device interrupts.
#[inline(never)]
fn dispatch_other(vector: u8) {
    match vector {
        // It only has to end the processor's sleep: the executor looks at its timers then.
        TIMER_VECTOR => time::fired(),
        PIC_VECTORS..FIRST_DEVICE_VECTOR => {
            if !lines::pic_interrupt(vector - PIC_VECTORS) {
                SPURIOUS.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        ERROR_VECTOR => lapic::note_error(),
        SPURIOUS_VECTOR => {
            // Not in service, so not to be ended.
            SPURIOUS.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Of an exception, or given to nobody.
        _ => {
            SPURIOUS.fetch_add(1, Ordering::Relaxed);
        }
    }
    lapic::end_of_interrupt();
}

/// Interrupts that nobody had asked for.
pub fn spurious() -> u64 {
    SPURIOUS.load(Ordering::Relaxed)
}

/// How often the vector fired.
pub fn count(vector: u8) -> u64 {
    SLOTS[usize::from(vector)].count.load(Ordering::Relaxed)
}

/// Every vector in use: its number, its name and how often it fired.
pub fn vectors() -> impl Iterator<Item = (u8, &'static str, u64)> {
    let fixed = [
        (TIMER_VECTOR, "timer"),
        (ERROR_VECTOR, "apic-error"),
        (SPURIOUS_VECTOR, "spurious"),
    ];
    let owned = SLOTS.iter().enumerate().filter_map(|(number, slot)| {
        let owner = slot.owner.get()?;
        Some((number as u8, owner.name.as_str()))
    });
    owned
        .chain(fixed)
        .map(|(number, name)| (number, name, count(number)))
}

/// A flag that an interrupt raises and one task waits for.
pub struct Event {
    raised: AtomicBool,
    count: AtomicU64,
    waker: AtomicWaker,
}

impl Event {
    /// An event that was not raised yet.
    pub const fn new() -> Self {
        Self {
            raised: AtomicBool::new(false),
            count: AtomicU64::new(0),
            waker: AtomicWaker::new(),
        }
    }

    /// Raises the flag and wakes the task that waits.
    pub fn raise(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.raised.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// How often it was raised so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether the flag is up.
    #[inline]
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Takes the flag down; says whether it was up.
    #[inline]
    pub fn take(&self) -> bool {
        // Mostly it is not, and a load is cheaper than a swap.
        self.is_raised() && self.raised.swap(false, Ordering::Acquire)
    }

    /// Waits until the flag is up and takes it down. One task at a time: a second one would take the first one's
    /// place.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll_wait(context)).await;
    }

    /// As [`wait`](Self::wait), for a future that waits for other things as well.
    pub fn poll_wait(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.take() {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        // It may have been raised between the look and the registration.
        if self.take() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

impl Handler for Event {
    fn interrupt(&self) -> bool {
        self.raise();
        true
    }
}
