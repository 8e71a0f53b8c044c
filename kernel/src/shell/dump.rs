//! Bytes as text.

use super::{Error, Output};
use crate::platform::serial;

const LINE: usize = 16;
/// Lines that are printed before the console is waited for, if it is slow.
const LINES_A_TURN: u64 = 64;

/// Two digits a byte.
pub(super) fn hexadecimal(out: Output<'_>, bytes: &[u8]) -> Result<(), Error> {
    for byte in bytes {
        write!(out, "{byte:02x}")?;
    }
    Ok(())
}

/// Sixteen bytes a line: where it is, counted from `start`; in hexadecimal; as ASCII.
pub(super) async fn lines(out: Output<'_>, start: u64, bytes: &[u8]) -> Result<(), Error> {
    for (line, bytes) in (0u64..).zip(bytes.chunks(LINE)) {
        if line % LINES_A_TURN == 0 {
            serial::room().await;
        }
        write!(out, "{:010x} ", start + line * LINE as u64)?;
        for byte in bytes {
            write!(out, " {byte:02x}")?;
        }
        out.write_str("  ")?;
        for byte in bytes {
            let graphic = byte.is_ascii_graphic();
            out.write_char(if graphic { char::from(*byte) } else { '.' })?;
        }
        writeln!(out)?;
    }
    Ok(())
}
