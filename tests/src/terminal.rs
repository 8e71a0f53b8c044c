//! A terminal at the guest's serial port: what a person would see.

use std::io::Write;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cell::PATIENCE;

/// So high that nothing scrolls away.
const ROWS: u16 = 500;

/// A terminal, and every byte that it was sent.
#[derive(Clone)]
pub struct Terminal {
    shared: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    emulator: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// A terminal of so many columns.
    pub fn new(columns: u16) -> Self {
        let cells = |count| NonZero::new(count).unwrap_or(NonZero::<u16>::MIN);
        let state = State {
            emulator: vt100::Parser::new(cells(ROWS), cells(columns), 0),
            bytes: Vec::new(),
        };
        Self {
            shared: Arc::new((Mutex::new(state), Condvar::new())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows as they are now, down to the last one with text.
    pub fn rows(&self) -> Vec<String> {
        rows(&self.lock())
    }

    /// Everything that was sent so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// The column that the cursor is in.
    pub fn column(&self) -> u16 {
        self.lock().emulator.screen().cursor_position().1
    }

    /// Waits until the last row with text is what is wanted.
    pub fn wait_for_last_row(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        self.wait(|state| rows(state).last().is_some_and(|row| wanted(row)))
    }

    /// Waits until this was sent, `times` times in all.
    pub fn wait_for_bytes(&self, wanted: &[u8], times: usize) -> Result<()> {
        self.wait(|state| {
            let windows = state.bytes.windows(wanted.len());
            windows.filter(|it| *it == wanted).count() >= times
        })
    }

    fn wait(&self, done: impl Fn(&State) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let rows = rows(&state);
                let last = rows.get(rows.len().saturating_sub(5)..);
                bail!("not seen; the last rows are {last:?}");
            }
            let waited = self.shared.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

fn rows(state: &State) -> Vec<String> {
    let screen = state.emulator.screen();
    let (_, columns) = screen.size();
    let mut rows: Vec<_> = screen
        .rows(0, columns.get())
        .map(|row| row.trim_end().to_string())
        .collect();
    while rows.last().is_some_and(String::is_empty) {
        rows.pop();
    }
    rows
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut state = self.lock();
        state.emulator.process(bytes);
        state.bytes.extend_from_slice(bytes);
        drop(state);
        self.shared.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
