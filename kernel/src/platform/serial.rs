//! The serial port COM1: what the kernel says and what it is told.
//!
//! Output goes to the port at once, as far as the port takes it. The rest waits in a queue, so that a console that nobody
//! reads stops nobody: the oldest lines are forgotten when the queue is full, counted, and a line in their place says so.
//! A task sends what waits when the port interrupts (transmitter holding register empty), or looks now and then where
//! there is no interrupt. Commands that print much wait for [`room`], so that a console that is only slow loses nothing.
//!
//! Only tasks write, so the locks are never contended by an interrupt; they are held with interrupts off, because an
//! interrupt may end a fiber that runs for too long. A panic may strike while they are held; it therefore writes through
//! [`Emergency`], which waits for none. Reading is driven by the receive interrupt (the FIFO stays where it is until a task
//! takes it), or by a timer where there is no interrupt.

mod queue;
pub mod terminal;

use alloc::collections::VecDeque;
use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};
use x86_64::instructions::interrupts::without_interrupts;

use crate::platform::interrupts::{self, Event};
use crate::platform::time::Instant;
use crate::platform::{journal, time};
use queue::Queue;

const COM1: u16 = 0x3f8;
const COM1_IRQ: u8 = 4;
const CTRL_C: u8 = 3;
/// Bytes that may be typed while a command runs.
const MAX_AHEAD: usize = 4096;
/// Bytes of output that may wait for the port.
const QUEUE_BYTES: usize = 64 * 1024;
/// Bytes of a line that are kept until it ends, for who runs beside others.
const MAX_BESIDE: usize = 4096;
/// Bytes that are queued before the port is looked at, with interrupts off.
const PIECE: usize = 256;
/// Bytes that are sent before other tasks have their turn.
const BYTES_A_TURN: usize = 1024;
/// How often a port without interrupts is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How often a port is looked at that should interrupt, while output waits: some do not when they are asked to while they
/// are ready already.
const BACKSTOP: Duration = Duration::from_secs(1);
/// How long a port takes nothing before nobody waits for it any more.
const STALL: Duration = Duration::from_secs(2);
/// How often commands that wait for room look for it.
const ROOM_POLL: Duration = Duration::from_millis(5);
/// Status reads without progress before waiting for the port is given up: far more than 16 bytes take at 115200 baud.
const TRANSMIT_PATIENCE: u32 = 1_000_000;

static PORT: Mutex<Port> = Mutex::new(Port {
    uart: None,
    mode: Mode::Direct,
    armed: false,
    progress: None,
});
static OUTPUT: Mutex<Queue<QUEUE_BYTES>> = Mutex::new(Queue::new());
/// Status reads left before the port is given up. Progress gives all of them back, and each caller starts where the last
/// one stopped, so that a report of many pieces is not waited for piece by piece.
static PATIENCE: AtomicU32 = AtomicU32::new(TRANSMIT_PATIENCE);
static RECEIVED: Event = Event::new();
/// The port may take more output, or there is output that it did not take.
static SENDABLE: Event = Event::new();
/// A line is being typed: what is logged meanwhile takes its place, and whoever edits it must show it again.
static LINE_SHOWN: AtomicBool = AtomicBool::new(false);
static LINE_OVERWRITTEN: Event = Event::new();
/// The last line has text and no end yet.
static IN_LINE: AtomicBool = AtomicBool::new(false);
/// That text is a status line, which gives way to whatever is written next.
static STATUS_SHOWN: AtomicBool = AtomicBool::new(false);
static LOST_INPUT: AtomicU64 = AtomicU64::new(0);
/// Bytes of a panic's report that the port would not take.
static LOST_REPORT: AtomicU64 = AtomicU64::new(0);

/// The port, and how output gets to it.
struct Port {
    uart: Option<Uart16550<PioBackend>>,
    mode: Mode,
    /// The port interrupts when it takes more output.
    armed: bool,
    /// When the port last took a byte, or output began to wait.
    progress: Option<Instant>,
}

/// How output that the port does not take at once gets to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The writer waits: there are no tasks yet.
    Direct,
    /// A task is told by an interrupt.
    Interrupt,
    /// A task looks now and then.
    Polled,
}

/// Sets the port up and makes it the target of `log`. A machine without COM1 stays silent.
pub fn init() {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        ..Config::DEFAULT
    };
    let mut uart = com1();
    if uart.init(config).is_ok() {
        without_interrupts(|| PORT.lock().uart = Some(uart));
    }
    if log::set_logger(&SerialLog).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// From here on nobody who writes waits: what the port does not take at once is sent by the future that this gives, which
/// is to run as a task. To be called when interrupts are there.
pub fn start() -> Option<impl Future<Output = ()>> {
    if without_interrupts(|| PORT.lock().uart.is_none()) {
        return None;
    }
    let both = &|| {
        RECEIVED.raise();
        SENDABLE.raise();
        true
    };
    let mode = match interrupts::lines::connect_isa(COM1_IRQ, "serial", both) {
        Ok(()) => Mode::Interrupt,
        Err(error) => {
            log::warn!("serial: polled, no interrupt: {error}");
            Mode::Polled
        }
    };
    without_interrupts(|| PORT.lock().mode = mode);
    Some(send_what_waits(mode))
}

/// Input bytes that came faster than they were read, or of which too many were typed while a command ran.
pub fn lost_input() -> u64 {
    LOST_INPUT.load(Ordering::Relaxed)
}

/// Output bytes forgotten because the port would not take them in time.
pub fn lost_output() -> u64 {
    let lost = without_interrupts(|| OUTPUT.lock().lost());
    lost + LOST_REPORT.load(Ordering::Relaxed)
}

/// Waits until half of the queue is free: for commands, between pieces of much output. Not for a console that nobody reads:
/// if it takes nothing for a while, its output goes on, and the oldest of it is lost.
pub async fn room() {
    wait_until_queued(QUEUE_BYTES / 2).await;
}

/// Waits until everything is sent, or the console takes nothing for a while.
pub async fn sent() {
    wait_until_queued(0).await;
}

async fn wait_until_queued(bytes: usize) {
    loop {
        let (waiting, progress) =
            without_interrupts(|| (OUTPUT.lock().len(), PORT.lock().progress));
        let stalled = progress.is_none_or(|progress| progress.elapsed() > STALL);
        if waiting <= bytes || stalled {
            return;
        }
        time::after(ROOM_POLL).await;
    }
}

/// Sends what waits without giving the processor to anyone, until the port takes nothing for too long: for the machine's end.
pub fn drain() {
    without_interrupts(|| {
        // Code that panics while it holds a lock writes only its own report.
        if let (Some(mut queue), Some(mut port)) = (OUTPUT.try_lock(), PORT.try_lock()) {
            port.drain(&mut queue);
        }
    });
}

/// The task that sends what the port did not take at once.
async fn send_what_waits(mode: Mode) {
    let look = match mode {
        Mode::Interrupt => BACKSTOP,
        Mode::Polled | Mode::Direct => POLL,
    };
    loop {
        SENDABLE.wait().await;
        loop {
            let sent = without_interrupts(|| {
                let (mut queue, mut port) = (OUTPUT.lock(), PORT.lock());
                port.send(&mut queue, BYTES_A_TURN)
            });
            match sent {
                Sent::All => break,
                Sent::Part => yield_now().await,
                Sent::PortBusy => {
                    select(SENDABLE.wait(), time::after(look)).await;
                }
            }
        }
    }
}

/// How far the port took what waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Nothing waits any more.
    All,
    /// The port may take more.
    Part,
    /// The port takes no more for now. It interrupts when it does, if it can.
    PortBusy,
}

impl Port {
    /// Has the port take what it takes at once, up to `budget` bytes or a few more.
    fn send(&mut self, queue: &mut Queue<QUEUE_BYTES>, budget: usize) -> Sent {
        let Some(uart) = &mut self.uart else {
            queue.clear();
            return Sent::All;
        };
        let mut taken = 0;
        let sent = loop {
            if queue.front().is_empty() {
                break Sent::All;
            }
            if taken >= budget {
                break Sent::Part;
            }
            // Each byte would interrupt.
            if self.armed && uart.ready_to_send().is_ok() {
                uart.disable_interrupts(IER::THR_EMPTY);
                self.armed = false;
            }
            let count = uart.send_bytes(queue.front());
            queue.sent(count);
            taken += count;
            if count == 0 {
                break Sent::PortBusy;
            }
        };
        if taken > 0 {
            self.progress = Some(time::now());
            PATIENCE.store(TRANSMIT_PATIENCE, Ordering::Relaxed);
        }
        if sent == Sent::PortBusy && self.mode == Mode::Interrupt && !self.armed {
            // If the port became ready meanwhile, it interrupts at once.
            uart.enable_interrupts(IER::THR_EMPTY);
            self.armed = true;
        }
        sent
    }

    /// Sends everything, with patience.
    fn drain(&mut self, queue: &mut Queue<QUEUE_BYTES>) {
        loop {
            match self.send(queue, BYTES_A_TURN) {
                Sent::All => return,
                Sent::Part => {}
                Sent::PortBusy if be_patient() => {}
                Sent::PortBusy => return,
            }
        }
    }
}

/// Waits for the port a little. `false` if it was waited for in vain for too long.
fn be_patient() -> bool {
    core::hint::spin_loop();
    let less = |left: u32| left.checked_sub(1);
    PATIENCE
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

/// What `write!` writes to: the serial port, with `\n` sent as `\r\n`.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        clear_status();
        if let Some(last) = text.as_bytes().last() {
            IN_LINE.store(*last != b'\n', Ordering::Relaxed);
        }
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                queue_piece(b"\r\n");
            }
            line.as_bytes().chunks(PIECE).for_each(queue_piece);
        }
        Ok(())
    }
}

/// Sends what a terminal obeys and does not show.
pub fn tell_terminal(sequence: &str) {
    queue_piece(sequence.as_bytes());
}

/// Shows how far something is, on a line that the next output of anybody takes the place of: only on a terminal, only where
/// no other line is unfinished, and not while much other output waits.
pub fn show_status(text: &str) {
    let shown = STATUS_SHOWN.load(Ordering::Relaxed);
    let others_line = IN_LINE.load(Ordering::Relaxed) && !shown;
    let crowded = without_interrupts(|| OUTPUT.lock().len()) > QUEUE_BYTES / 2;
    if !terminal::is_there() || others_line || crowded {
        return;
    }
    queue_piece(b"\r");
    queue_piece(text.as_bytes());
    queue_piece(ERASE_TO_END.as_bytes());
    STATUS_SHOWN.store(true, Ordering::Relaxed);
}

/// Takes the status line away, if there is one.
pub fn clear_status() {
    if STATUS_SHOWN.swap(false, Ordering::Relaxed) {
        queue_piece(ERASE_LINE.as_bytes());
    }
}

/// The console for who runs beside others: whole lines, which take the place of a line that is being typed, as messages do.
#[derive(Default)]
pub struct Beside {
    line: String,
}

impl Write for Beside {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            self.line.push_str(piece);
            if piece.ends_with('\n') || self.line.len() > MAX_BESIDE {
                yield_line();
                Console.write_str(&core::mem::take(&mut self.line))?;
            }
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let _ = self.write_char('\n');
        }
    }
}

/// What is written next takes the place of a line that is being typed, if one is shown.
fn yield_line() {
    if LINE_SHOWN.load(Ordering::Relaxed) {
        queue_piece(ERASE_LINE.as_bytes());
        LINE_OVERWRITTEN.raise();
    }
}

fn queue_piece(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    without_interrupts(|| {
        let (mut queue, mut port) = (OUTPUT.lock(), PORT.lock());
        let first = queue.len() == 0;
        if first {
            port.progress = Some(time::now());
        }
        queue.push(bytes);
        match port.mode {
            Mode::Direct => port.drain(&mut queue),
            Mode::Interrupt | Mode::Polled => {
                let sent = port.send(&mut queue, 2 * PIECE);
                if sent == Sent::Part || sent == Sent::PortBusy && first {
                    SENDABLE.raise();
                }
            }
        }
    });
}

/// The serial port for reports of a dying kernel: waits for no lock, needs nothing set up. What was written before comes
/// first, if the port takes it.
pub struct Emergency;

impl Write for Emergency {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        drain();
        let mut uart = com1();
        // Programmed already (or by the firmware); `send_bytes` without a configured FIFO sends byte by byte.
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                send_through(&mut uart, b"\r\n");
            }
            send_through(&mut uart, line.as_bytes());
        }
        Ok(())
    }
}

fn send_through(uart: &mut Uart16550<PioBackend>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let sent = uart.send_bytes(bytes);
        bytes = bytes.get(sent..).unwrap_or_default();
        if sent > 0 {
            PATIENCE.store(TRANSMIT_PATIENCE, Ordering::Relaxed);
        } else if !be_patient() {
            LOST_REPORT.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return;
        }
    }
}

/// To the line's begin, and blank to its end (ECMA-48 EL).
const ERASE_LINE: &str = "\r\x1b[K";
const ERASE_TO_END: &str = "\x1b[K";

/// What an editor of a line waits for.
pub enum Typing {
    /// A byte was received.
    Byte(u8),
    /// Something was logged in the line's place: show it again.
    Overwritten,
}

/// Input, byte by byte, for one reader.
pub struct Input {
    mode: Mode,
    /// What was typed while a command ran, for the line that comes after it.
    ahead: VecDeque<u8>,
}

impl Input {
    /// Turns the receive interrupt on, or settles for polling where it cannot be had.
    pub fn open() -> Self {
        let mode = without_interrupts(|| {
            let mut port = PORT.lock();
            let mode = port.mode;
            if mode == Mode::Interrupt
                && let Some(uart) = port.uart.as_mut()
            {
                uart.enable_interrupts(IER::DATA_READY | IER::RECEIVER_LINE_STATUS);
            }
            mode
        });
        Self {
            mode,
            ahead: VecDeque::new(),
        }
    }

    /// The next byte received for a line that is shown and edited.
    pub async fn typing(&mut self) -> Typing {
        if LINE_OVERWRITTEN.take() {
            return Typing::Overwritten;
        }
        if let Some(byte) = self.ahead.pop_front() {
            return Typing::Byte(byte);
        }
        LINE_SHOWN.store(true, Ordering::Relaxed);
        // No byte is shown on a line that is not there.
        let typing = match select(LINE_OVERWRITTEN.wait(), self.byte()).await {
            Either::First(()) => Typing::Overwritten,
            Either::Second(byte) => Typing::Byte(byte),
        };
        LINE_SHOWN.store(false, Ordering::Relaxed);
        typing
    }

    /// Does something for a line that is shown, unless Ctrl-C comes before it is done. Other keys are for later.
    pub async fn for_line<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        LINE_SHOWN.store(true, Ordering::Relaxed);
        let done = match select(work, self.break_off()).await {
            Either::First(done) => Some(done),
            Either::Second(()) => None,
        };
        LINE_SHOWN.store(false, Ordering::Relaxed);
        done
    }

    /// Waits for Ctrl-C. What comes before it is kept for later, and forgotten when it comes.
    pub async fn break_off(&mut self) {
        loop {
            match self.byte().await {
                CTRL_C => return self.ahead.clear(),
                byte if self.ahead.len() < MAX_AHEAD => self.ahead.push_back(byte),
                _ => {
                    LOST_INPUT.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// The next byte received.
    async fn byte(&mut self) -> u8 {
        loop {
            if let Some(byte) = receive() {
                return byte;
            }
            match self.mode {
                Mode::Interrupt => RECEIVED.wait().await,
                Mode::Polled | Mode::Direct => time::after(POLL).await,
            }
        }
    }
}

fn receive() -> Option<u8> {
    without_interrupts(|| {
        let mut port = PORT.lock();
        let uart = port.uart.as_mut()?;
        if uart.lsr().contains(LSR::OVERRUN_ERROR) {
            LOST_INPUT.fetch_add(1, Ordering::Relaxed);
        }
        uart.try_receive_byte().ok()
    })
}

#[allow(unsafe_code)]
fn com1() -> Uart16550<PioBackend> {
    // SAFETY: these are COM1's ports on every PC; reading and writing them touches no memory. Two handles at once
    // exist only when the second one reports a panic, after which nothing else runs.
    match unsafe { Uart16550::new_port(COM1) } {
        Ok(port) => port,
        Err(_) => unreachable!("COM1's eight ports fit below 0x10000"),
    }
}

/// `log` on the serial port: `[   0.012345] INFO  text`.
struct SerialLog;

impl Log for SerialLog {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        // The crates below us (smoltcp, acpi, ...) speak only when something is wrong or tracing was asked for.
        let ours = record.target().starts_with("vringlet");
        if !ours && record.level() > Level::Warn && log::max_level() < LevelFilter::Trace {
            return;
        }
        let micros = time::now().as_micros();
        let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
        let (level, text) = (record.level(), record.args());
        journal::note(micros, level, text);
        yield_line();
        let style = terminal::style(level);
        let _ = writeln!(
            Console,
            "[{seconds:4}.{fraction:06}] {style}{level:<5}{style:#} {text}"
        );
    }

    fn flush(&self) {}
}
