//! The serial port COM1: what the kernel says and what it is told.
//!
//! Writing is synchronous and only tasks do it, so its lock is never contended by an interrupt. A panic may strike
//! while that lock is held; it therefore writes through [`Emergency`], which takes none. Reading is driven by the
//! receive interrupt (the FIFO stays where it is until a task takes it), or by a timer where there is no interrupt.

use alloc::collections::VecDeque;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use embassy_futures::select::{Either, select};
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

use crate::interrupts::{self, Event};
use crate::{journal, time};

const COM1: u16 = 0x3f8;
const COM1_IRQ: u8 = 4;
const CTRL_C: u8 = 3;
/// Bytes that may be typed while a command runs.
const MOST_AHEAD: usize = 4096;
/// How often a port without interrupts is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Status reads before output is given up: far more than 16 bytes take at 115200 baud.
const TRANSMIT_PATIENCE: u32 = 1_000_000;

static PORT: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);
static RECEIVED: Event = Event::new();
/// A line is being typed: what is logged meanwhile takes its place, and whoever edits it must show it again.
static LINE_SHOWN: AtomicBool = AtomicBool::new(false);
static LINE_OVERWRITTEN: Event = Event::new();
static LOST_INPUT: AtomicU64 = AtomicU64::new(0);
static LOST_OUTPUT: AtomicU64 = AtomicU64::new(0);

/// Sets the port up and makes it the target of `log`. A machine without COM1 stays silent.
pub fn init() {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        ..Config::DEFAULT
    };
    let mut port = com1();
    if port.init(config).is_ok() {
        *PORT.lock() = Some(port);
    }
    if log::set_logger(&SerialLog).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Input bytes that came faster than they were read, or of which too many were typed while a command ran.
pub fn lost_input() -> u64 {
    LOST_INPUT.load(Ordering::Relaxed)
}

/// Output bytes given up because the port would not take them.
pub fn lost_output() -> u64 {
    LOST_OUTPUT.load(Ordering::Relaxed)
}

/// What `write!` writes to: the serial port, with `\n` sent as `\r\n`.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(port) = PORT.lock().as_mut() {
            send_text(port, text);
        }
        Ok(())
    }
}

/// The serial port for reports of a dying kernel: takes no lock, needs nothing set up.
pub struct Emergency;

impl Write for Emergency {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut port = com1();
        // Programmed already (or by the firmware); `send_bytes` without a configured FIFO sends byte by byte.
        send_text(&mut port, text);
        Ok(())
    }
}

/// To the line's begin, and blank to its end (ECMA-48 EL).
const ERASE_LINE: &str = "\r\x1b[K";

/// What an editor of a line waits for.
pub enum Typing {
    /// A byte was received.
    Byte(u8),
    /// Something was logged in the line's place: show it again.
    Overwritten,
}

/// Input, byte by byte, for one reader.
pub struct Input {
    interrupt_driven: bool,
    /// What was typed while a command ran, for the line that comes after it.
    ahead: VecDeque<u8>,
}

impl Input {
    /// Turns the receive interrupt on, or settles for polling where it cannot be had.
    pub fn open() -> Self {
        let interrupt_driven = interrupts::lines::connect_isa(COM1_IRQ, "serial", &RECEIVED)
            .inspect_err(|error| log::warn!("serial: polled, no interrupt: {error}"))
            .is_ok();
        if interrupt_driven && let Some(port) = PORT.lock().as_mut() {
            port.enable_interrupts(IER::DATA_READY | IER::RECEIVER_LINE_STATUS);
        }
        Self {
            interrupt_driven,
            ahead: VecDeque::new(),
        }
    }

    /// The next byte received for a line that is shown and edited.
    pub async fn typing(&mut self) -> Typing {
        if let Some(byte) = self.ahead.pop_front() {
            return Typing::Byte(byte);
        }
        LINE_SHOWN.store(true, Ordering::Relaxed);
        let typing = match select(self.byte(), LINE_OVERWRITTEN.wait()).await {
            Either::First(byte) => Typing::Byte(byte),
            Either::Second(()) => Typing::Overwritten,
        };
        LINE_SHOWN.store(false, Ordering::Relaxed);
        typing
    }

    /// Waits for Ctrl-C. What comes before it is kept for later, and forgotten when it comes.
    pub async fn break_off(&mut self) {
        loop {
            match self.byte().await {
                CTRL_C => return self.ahead.clear(),
                byte if self.ahead.len() < MOST_AHEAD => self.ahead.push_back(byte),
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
            if self.interrupt_driven {
                RECEIVED.wait().await;
            } else {
                time::after(POLL).await;
            }
        }
    }
}

fn receive() -> Option<u8> {
    let mut port = PORT.lock();
    let port = port.as_mut()?;
    if port.lsr().contains(LSR::OVERRUN_ERROR) {
        LOST_INPUT.fetch_add(1, Ordering::Relaxed);
    }
    port.try_receive_byte().ok()
}

fn send_text(port: &mut Uart16550<PioBackend>, text: &str) {
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            send(port, b"\r\n");
        }
        send(port, line.as_bytes());
    }
}

fn send(port: &mut Uart16550<PioBackend>, mut bytes: &[u8]) {
    let mut patience = TRANSMIT_PATIENCE;
    while !bytes.is_empty() {
        let sent = port.send_bytes(bytes);
        bytes = bytes.get(sent..).unwrap_or_default();
        if sent == 0 {
            patience -= 1;
            if patience == 0 {
                LOST_OUTPUT.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return;
            }
            core::hint::spin_loop();
        }
    }
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
        if LINE_SHOWN.load(Ordering::Relaxed) {
            let _ = Console.write_str(ERASE_LINE);
            LINE_OVERWRITTEN.raise();
        }
        let _ = writeln!(Console, "[{seconds:4}.{fraction:06}] {level:<5} {text}");
    }

    fn flush(&self) {}
}
