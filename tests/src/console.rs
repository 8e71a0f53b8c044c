//! The guest's serial port: captured line by line with times, waited for with a bound.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What the shell prints when it waits for a command.
pub const PROMPT: &str = "vringlet> ";

/// A line that the guest printed.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its first byte arrived, from the start of the capture.
    pub at: Duration,
    /// Its text, without line end and escape sequences.
    pub text: String,
}

/// Both directions of the serial port.
pub struct Console {
    shared: Arc<Shared>,
    input: Box<dyn Write + Send>,
    /// Lines before this one were already handed out by `expect`.
    cursor: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The last of them is the unfinished one, if `open` is set.
    lines: Vec<Line>,
    open: bool,
    closed: bool,
    /// Nothing more is read.
    held: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn when_not_held<T>(&self, read: impl FnOnce() -> T) -> T {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| state.held));
        read()
    }
}

impl Console {
    /// Reads `output` to its end in a thread of its own, passing on every byte to `echo`.
    pub fn capture(
        mut output: impl Read + Send + 'static,
        input: impl Write + Send + 'static,
        mut echo: impl Write + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let writer = Arc::clone(&shared);
        let start = Instant::now();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut plain = PlainText::default();
            while let Ok(count @ 1..) = writer.when_not_held(|| output.read(&mut buffer)) {
                // A closed echo (`make run | head`) is no reason to stop the guest.
                let _ = echo.write_all(&buffer[..count]).and_then(|()| echo.flush());
                let text = plain.next(&buffer[..count]);
                writer.lock().append(&text, start.elapsed());
                writer.changed.notify_all();
            }
            writer.lock().closed = true;
            writer.changed.notify_all();
        });
        Console {
            shared,
            input: Box::new(input),
            cursor: 0,
        }
    }

    /// Waits for a line that contains `needle`, among those after the one found last, and returns it.
    pub fn expect(&mut self, needle: &str, bound: Duration) -> Result<Line> {
        let (index, line) = self.wait(self.cursor, needle, bound)?;
        self.cursor = index + 1;
        Ok(line)
    }

    /// Waits until the shell waits for a command: what is typed before that it drops.
    pub fn wait_for_prompt(&self, bound: Duration) -> Result<()> {
        let waits = |state: &State| {
            state.open
                && state
                    .lines
                    .last()
                    .is_some_and(|line| line.text.ends_with(PROMPT))
        };
        let state = self.shared.lock();
        let waiting = |state: &mut State| !waits(state) && !state.closed;
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, bound, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match (waits(&state), state.closed) {
            (true, _) => Ok(()),
            (false, true) => bail!("the guest ended before it showed its prompt"),
            (false, false) => bail!("no prompt within {} s", bound.as_secs()),
        }
    }

    /// Waits for a line that contains `needle`, wherever it is among the others.
    pub fn wait_for(&self, needle: &str, bound: Duration) -> Result<()> {
        self.wait(0, needle, bound).map(drop)
    }

    fn wait(&self, start: usize, needle: &str, bound: Duration) -> Result<(usize, Line)> {
        let deadline = Instant::now() + bound;
        let mut state = self.shared.lock();
        loop {
            let finished = state.lines.len() - usize::from(state.open);
            let fresh = state.lines.get(start..finished).unwrap_or_default();
            if let Some(index) = fresh.iter().position(|line| line.text.contains(needle)) {
                return Ok((start + index, fresh[index].clone()));
            }
            if state.closed {
                bail!("the guest ended before it printed {needle:?}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = state.lines.last().map_or("", |line| &line.text);
                bail!(
                    "{needle:?} was not printed within {} s; last line: {last:?}",
                    bound.as_secs()
                );
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the port is closed, which is when QEMU has ended and every byte was read.
    pub fn wait_closed(&self, bound: Duration) {
        let state = self.shared.lock();
        let _ = self
            .shared
            .changed
            .wait_timeout_while(state, bound, |state| !state.closed);
    }

    /// Stops reading, once what is on its way is read: the guest has a console that nobody reads.
    pub fn hold(&self) {
        self.shared.lock().held = true;
    }

    /// Reads again.
    pub fn release(&self) {
        self.shared.lock().held = false;
        self.shared.changed.notify_all();
    }

    /// Types a line, as a person would.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        self.type_keys(&format!("{text}\r"))
    }

    /// Types keys, as the bytes that a terminal sends for them.
    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        let typed = self.input.write_all(keys.as_bytes());
        typed
            .and_then(|()| self.input.flush())
            .context("typing on the serial port")
    }

    /// Types Ctrl-C.
    pub fn interrupt(&mut self) -> Result<()> {
        self.type_keys("\x03")
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// The first line so far that contains `needle`.
    pub fn find(&self, needle: &str) -> Option<Line> {
        self.shared
            .lock()
            .lines
            .iter()
            .find(|line| line.text.contains(needle))
            .cloned()
    }

    /// What a script's command printed: the lines between its echo (`> command`) and the next one's.
    /// Log lines in between are left out.
    pub fn output_of(&self, command: &str) -> Result<Vec<String>> {
        let echo = format!("> {command}");
        let lines = self.lines();
        let start = lines
            .iter()
            .position(|line| line.text.trim_end() == echo)
            .with_context(|| format!("the script never came to {command:?}"))?;
        Ok(lines[start + 1..]
            .iter()
            .map(|line| &line.text)
            .take_while(|text| !text.starts_with("> ") && !text.starts_with(PROMPT))
            .filter(|text| !text.starts_with('['))
            .cloned()
            .collect())
    }

    /// Writes the captured lines with their times into a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        for line in self.lines() {
            let _ = writeln!(text, "{:>9.3} {}", line.at.as_secs_f64(), line.text);
        }
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

impl State {
    fn append(&mut self, text: &str, at: Duration) {
        for piece in text.split_inclusive('\n') {
            match self.lines.last_mut().filter(|_| self.open) {
                Some(line) => line.text.push_str(piece),
                None => self.lines.push(Line {
                    at,
                    text: piece.to_string(),
                }),
            }
            self.open = !piece.ends_with('\n');
            if let Some(line) = self.lines.last_mut().filter(|_| !self.open) {
                line.text
                    .truncate(line.text.trim_end_matches(['\r', '\n']).len());
            }
        }
    }
}

/// Takes terminal escape sequences out of a stream of bytes.
#[derive(Default)]
struct PlainText {
    escape: Escape,
    /// The start of a UTF-8 character whose rest has not come yet.
    partial: Vec<u8>,
    /// The last byte that was not part of an escape sequence was a carriage return.
    after_return: bool,
}

#[derive(Clone, Copy, Default)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Started,
    /// After ESC [, until a final byte.
    Sequence,
}

impl PlainText {
    fn next(&mut self, bytes: &[u8]) -> String {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::None, 0x1b) => Escape::Started,
                (Escape::Started, b'[') => Escape::Sequence,
                // A line begun anew, which is how the shell puts what is logged above its prompt.
                (Escape::Sequence, b'K') if self.after_return => {
                    self.partial.push(b'\n');
                    self.after_return = false;
                    Escape::None
                }
                (Escape::Sequence, 0x40..=0x7e) | (Escape::Started, _) => Escape::None,
                (Escape::Sequence, _) => Escape::Sequence,
                (Escape::None, _) => {
                    self.partial.push(byte);
                    self.after_return = byte == b'\r';
                    Escape::None
                }
            };
        }
        let whole = match std::str::from_utf8(&self.partial) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.partial.len(),
        };
        let text = String::from_utf8_lossy(&self.partial[..whole]).into_owned();
        self.partial.drain(..whole);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(text: &'static [u8]) -> Console {
        let console = Console::capture(text, std::io::sink(), std::io::sink());
        console.wait_closed(Duration::from_secs(5));
        console
    }

    #[test]
    fn lines_are_split_and_cleaned() {
        let console = captured(b"one\r\n\x1b[1;32mtwo\x1b[0m\r\n\r\nvringlet> ");
        let lines: Vec<_> = console.lines().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["one", "two", "", "vringlet> "]);
    }

    #[test]
    fn a_line_begun_anew_is_another_line() {
        let console = captured(b"vringlet> \r\x1b[K[ 0.1] INFO  x\r\nvringlet> ab\x1b[Kc\r\n");
        let lines: Vec<_> = console.lines().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["vringlet> ", "[ 0.1] INFO  x", "vringlet> abc"]);
    }

    #[test]
    fn nothing_is_read_from_a_console_that_is_held() -> Result<()> {
        let (output, mut guest) = std::io::pipe()?;
        let mut console = Console::capture(output, std::io::sink(), std::io::sink());
        let bound = Duration::from_secs(5);
        guest.write_all(b"one\n")?;
        console.expect("one", bound)?;
        console.hold();
        // The reader may be in the middle of one last read.
        guest.write_all(b"two\n")?;
        guest.write_all(b"three\n")?;
        std::thread::sleep(Duration::from_millis(50));
        guest.write_all(b"four\n")?;
        assert!(console.expect("four", Duration::from_millis(50)).is_err());
        console.release();
        console.expect("four", bound)?;
        Ok(())
    }

    #[test]
    fn expect_goes_forward_and_needs_a_whole_line() -> Result<()> {
        let mut console = captured(b"a 1\na 2\nvringlet> ");
        let bound = Duration::from_millis(10);
        assert_eq!(console.expect("a", bound)?.text, "a 1");
        assert_eq!(console.expect("a", bound)?.text, "a 2");
        assert!(console.expect("vring", bound).is_err());
        Ok(())
    }

    #[test]
    fn the_prompt_counts_when_nothing_follows_it() -> Result<()> {
        let bound = Duration::from_millis(10);
        captured(b"a\nvringlet> ").wait_for_prompt(bound)?;
        captured(b"vringlet> [0.1] INFO x\r\nvringlet> ").wait_for_prompt(bound)?;
        assert!(
            captured(b"vringlet> echo\n")
                .wait_for_prompt(bound)
                .is_err()
        );
        assert!(captured(b"vringlet> ec").wait_for_prompt(bound).is_err());
        Ok(())
    }

    #[test]
    fn output_of_one_command() -> Result<()> {
        let console = captured(b"> blk info\n[ 0.1] INFO  x\nblk0: 8\n> echo\n\nvringlet> ");
        assert_eq!(console.output_of("blk info")?, ["blk0: 8"]);
        assert_eq!(console.output_of("echo")?, [""]);
        assert!(console.output_of("blk").is_err());
        Ok(())
    }

    #[test]
    fn characters_and_escapes_may_be_cut_anywhere() {
        let bytes = "a\u{1b}[31mé\u{1b}[0m€z".as_bytes();
        for cut in 0..=bytes.len() {
            let mut plain = PlainText::default();
            let text = plain.next(&bytes[..cut]) + &plain.next(&bytes[cut..]);
            assert_eq!(text, "aé€z", "cut at {cut}");
        }
    }
}
