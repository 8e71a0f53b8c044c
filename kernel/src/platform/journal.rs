//! The last lines of the log, for whoever shows them. Kept in memory that is there from the start: what is logged before
//! there is a heap is in it, and logging never allocates.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use heapless::HistoryBuf;
use log::Level;
use spin::Mutex;

/// How many lines are kept.
const LINES: usize = 64;
/// How many bytes of each.
const LINE_BYTES: usize = 160;

/// A line of the log.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was logged, in microseconds since the kernel's start.
    pub micros: u64,
    /// How important it is.
    pub level: Level,
    /// What it says, or the first part of that.
    pub text: heapless::String<LINE_BYTES>,
}

static LAST: Mutex<HistoryBuf<Line, LINES>> = Mutex::new(HistoryBuf::new());

/// Notes a line.
pub fn note(micros: u64, level: Level, text: &fmt::Arguments<'_>) {
    let mut cut = Cut(heapless::String::new());
    // What does not fit is left out.
    let _ = cut.write_fmt(*text);
    let text = cut.0;
    LAST.lock().write(Line {
        micros,
        level,
        text,
    });
}

/// The last lines, at most `count`, oldest first.
pub fn last(count: usize) -> Vec<Line> {
    let last = LAST.lock();
    let skipped = last.len().saturating_sub(count);
    last.oldest_ordered().skip(skipped).cloned().collect()
}

/// Takes what fits.
struct Cut(heapless::String<LINE_BYTES>);

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            self.0.push(character).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_cut() {
        for number in 0..100u64 {
            note(
                number,
                Level::Info,
                &format_args!("line {number} {:200}", ""),
            );
        }
        let lines = last(2);
        assert_eq!([98, 99], [lines[0].micros, lines[1].micros]);
        assert!(lines[1].text.starts_with("line 99 "));
        assert_eq!(lines[1].text.len(), LINE_BYTES);
        assert_eq!(last(1000).len(), LINES);
    }
}
