//! The first serial port, for the one line that says why there is no kernel.

use core::fmt;

use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

const COM1: u16 = 0x3f8;
/// Tries to send a byte before it is given up: about a tenth of a second.
const TRIES: u32 = 100_000;

/// COM1; what is written is lost where there is none.
pub(crate) struct Serial(Option<Uart16550<PioBackend>>);

impl Serial {
    /// Sets up COM1.
    pub(crate) fn new() -> Self {
        // SAFETY: nothing else in the loader uses COM1's ports.
        let uart = unsafe { Uart16550::new_port(COM1) };
        Self(uart.ok().and_then(|mut uart| {
            uart.init(Config::default()).ok()?;
            Some(uart)
        }))
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(uart) = &mut self.0 {
            for byte in text.bytes() {
                (0..TRIES).find(|_| uart.try_send_byte(byte).is_ok());
            }
        }
        Ok(())
    }
}
