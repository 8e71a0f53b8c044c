//! How far a command is, on a line that changes in place while it runs.

use alloc::format;
use alloc::string::String;
use core::cell::Cell;
use core::fmt;
use core::time::Duration;

use crate::platform::serial::{self, terminal};
use crate::platform::time::{self, Instant};
use crate::shell::COLUMNS;

/// What is done sooner shows no progress.
const FIRST: Duration = Duration::from_millis(500);
/// How long a line stays as it is.
const STEP: Duration = Duration::from_millis(200);

/// The account of a command that works on many bytes. The line goes when this is dropped.
pub(super) struct Progress {
    /// For a command that runs beside others there is no line: the prompt is there, or another command's line.
    visible: bool,
    total: Cell<Option<u64>>,
    done: Cell<u64>,
    start: Instant,
    /// When the line is to be drawn again.
    next: Cell<Duration>,
}

impl Progress {
    /// The account of a command that is waited for at the console.
    pub(super) fn visible() -> Self {
        let mut progress = Self::hidden();
        progress.visible = true;
        progress
    }

    /// An account that nobody is shown.
    pub(super) fn hidden() -> Self {
        Self {
            visible: false,
            total: Cell::new(None),
            done: Cell::new(0),
            start: time::now(),
            next: Cell::new(FIRST),
        }
    }

    /// The same, of so many bytes in all.
    pub(super) fn of(self, total: u64) -> Self {
        self.expect(total);
        self
    }

    /// It turned out that it is so many bytes in all.
    pub(super) fn expect(&self, total: u64) {
        self.total.set(Some(total));
    }

    /// So many more bytes are done.
    pub(super) fn add(&self, bytes: u64) {
        self.done.set(self.done.get().saturating_add(bytes));
        let elapsed = self.start.elapsed();
        if !self.visible || elapsed < self.next.get() {
            return;
        }
        self.next.set(elapsed + STEP);
        let line = line(self.done.get(), self.total.get(), elapsed);
        // One that reaches the last column would make the next row.
        let room = terminal::columns().unwrap_or(COLUMNS) - 1;
        serial::show_status(line.get(..room).unwrap_or(&line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.visible {
            serial::clear_status();
        }
    }
}

/// ` 34 %  12.3 MiB of 36.0 MiB, 4.1 MiB/s, 6 s left`, in ASCII.
fn line(done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let rate = u128::from(done) * 1000 / elapsed.as_millis().max(1);
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    let Some(total) = total else {
        return format!("{}, {}/s", Bytes(done), Bytes(rate));
    };
    // A file may grow while it is read.
    let total = total.max(done);
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let mut line = format!(
        "{percent:3} %  {} of {}, {}/s",
        Bytes(done),
        Bytes(total),
        Bytes(rate)
    );
    if let Some(left) = (total - done).checked_div(rate) {
        line += &match left {
            0..100 => format!(", {left} s left"),
            100..6000 => format!(", {} min left", left / 60),
            _ => format!(", {} h left", left / 3600),
        };
    }
    line
}

/// A number of bytes as people say it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut tenths = u128::from(self.0) * 10;
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let mut units = UNITS.iter();
        let mut unit = units.next();
        tenths /= 1024;
        while tenths >= 10240 {
            (tenths, unit) = (tenths / 1024, units.next());
        }
        let unit = unit.copied().unwrap_or_default();
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_how_long() {
        let seconds = Duration::from_secs;
        assert_eq!(
            line(12 << 20, Some(36 << 20), seconds(3)),
            " 33 %  12.0 MiB of 36.0 MiB, 4.0 MiB/s, 6 s left"
        );
        assert_eq!(line(1536, None, seconds(1)), "1.5 KiB, 1.5 KiB/s");
        assert_eq!(
            line(1000, Some(3 << 40), seconds(1)),
            "  0 %  1000 bytes of 3.0 TiB, 1000 bytes/s, 916259 h left"
        );
    }

    #[test]
    fn nothing_that_can_be_counted_is_too_much_or_too_little() {
        let line = |done, total, elapsed| line(done, total, elapsed);
        let most = line(u64::MAX, Some(u64::MAX), Duration::from_nanos(1));
        assert_eq!(most, "100 %  15.9 EiB of 15.9 EiB, 15.9 EiB/s, 0 s left");
        assert_eq!(
            line(0, Some(0), Duration::ZERO),
            "  0 %  0 bytes of 0 bytes, 0 bytes/s"
        );
        // A file that has grown.
        let grown = line(2048, Some(1024), Duration::from_secs(1));
        assert!(grown.starts_with("100 %  2.0 KiB of 2.0 KiB"), "{grown}");
    }
}
