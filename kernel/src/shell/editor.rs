//! The line editor: bytes of a terminal in, echo out, whole lines at the end. It does no input and waits for nothing.
//!
//! (The crates looked at do not fit a line that may be a pipe: `noline` asks the terminal where its cursor is and waits
//! for the answer.)

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

const MAX_CHARACTERS: usize = 1024;
const MAX_HISTORY: usize = 64;

/// What a byte led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing the caller needs to know.
    None,
    /// The line is finished.
    Line(String),
    /// The line was given up with Ctrl-C.
    Cancelled,
}

/// A line being typed, and the lines typed before.
pub struct Editor {
    prompt: &'static str,
    line: Vec<char>,
    /// Where the next character goes.
    cursor: usize,
    history: VecDeque<String>,
    /// How far back in the history we are (0: the line being typed), and that line.
    back: usize,
    draft: Vec<char>,
    input: Decoder,
    /// The last byte was a carriage return: a line feed right after it is the same key.
    after_return: bool,
}

impl Editor {
    /// An editor for lines after this prompt, which the caller has shown.
    pub fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            line: Vec::new(),
            cursor: 0,
            history: VecDeque::new(),
            back: 0,
            draft: Vec::new(),
            input: Decoder::default(),
            after_return: false,
        }
    }

    /// Takes a byte from the terminal; writes what the terminal must show to `echo`.
    pub fn feed(&mut self, byte: u8, echo: &mut impl Write) -> Event {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        if after_return && byte == b'\n' {
            return Event::None;
        }
        let Some(key) = self.input.feed(byte) else {
            return Event::None;
        };
        match key {
            Key::Enter => return self.finish(echo),
            Key::Cancel => {
                self.reset();
                let _ = echo.write_str("^C\n");
                return Event::Cancelled;
            }
            Key::Character(character) => self.insert(character, echo),
            Key::Left => self.move_to(self.cursor.saturating_sub(1), echo),
            Key::Right => self.move_to((self.cursor + 1).min(self.line.len()), echo),
            Key::Home => self.move_to(0, echo),
            Key::End => self.move_to(self.line.len(), echo),
            Key::Backspace => self.delete(self.cursor.saturating_sub(1), self.cursor, echo),
            Key::Delete => self.delete(self.cursor, (self.cursor + 1).min(self.line.len()), echo),
            Key::DeleteToEnd => self.delete(self.cursor, self.line.len(), echo),
            Key::DeleteToStart => self.delete(0, self.cursor, echo),
            Key::DeleteWord => self.delete(self.word_start(), self.cursor, echo),
            Key::Up => self.recall(self.back + 1, echo),
            Key::Down => self.recall(self.back.saturating_sub(1), echo),
            Key::Redraw => {
                let _ = echo.write_str("\x1b[2J\x1b[H");
                self.show_again(echo);
            }
        }
        Event::None
    }

    /// Writes prompt and line to an empty line of the terminal.
    pub fn show_again(&mut self, echo: &mut impl Write) {
        let _ = echo.write_str(self.prompt);
        let cursor = core::mem::take(&mut self.cursor);
        self.show_from(0, 0, echo);
        self.move_to(cursor, echo);
    }

    fn finish(&mut self, echo: &mut impl Write) -> Event {
        let _ = echo.write_char('\n');
        let line: String = self.line.iter().collect();
        self.reset();
        self.remember(line.clone());
        Event::Line(line)
    }

    /// Puts a line into the history, as if it had been typed.
    pub fn remember(&mut self, line: String) {
        let repeated = self.history.front() == Some(&line);
        if !line.trim().is_empty() && !repeated {
            self.history.push_front(line);
            self.history.truncate(MAX_HISTORY);
        }
    }

    fn reset(&mut self) {
        self.line.clear();
        self.draft.clear();
        self.cursor = 0;
        self.back = 0;
    }

    fn insert(&mut self, character: char, echo: &mut impl Write) {
        if self.line.len() >= MAX_CHARACTERS {
            let _ = echo.write_char('\x07');
            return;
        }
        self.line.insert(self.cursor, character);
        let at = self.cursor;
        self.show_from(at, 0, echo);
        self.move_to(at + 1, echo);
    }

    fn delete(&mut self, from: usize, to: usize, echo: &mut impl Write) {
        self.move_to(from, echo);
        self.line.drain(from..to);
        self.show_from(from, to - from, echo);
        self.move_to(from, echo);
    }

    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let word_end = before
            .iter()
            .rposition(|character| *character != ' ')
            .map_or(0, |at| at + 1);
        before[..word_end]
            .iter()
            .rposition(|character| *character == ' ')
            .map_or(0, |at| at + 1)
    }

    fn recall(&mut self, back: usize, echo: &mut impl Write) {
        let recalled = match back {
            0 => core::mem::take(&mut self.draft),
            _ => match self.history.get(back - 1) {
                Some(line) => line.chars().collect(),
                None => return,
            },
        };
        if back == self.back {
            return;
        }
        let replaced = core::mem::replace(&mut self.line, recalled);
        if self.back == 0 {
            self.draft.clone_from(&replaced);
        }
        self.back = back;
        write_repeated(echo, "\x08", self.cursor);
        self.cursor = 0;
        self.show_from(0, replaced.len().saturating_sub(self.line.len()), echo);
    }

    /// Writes the line from `at`, where the terminal's cursor is, to its end, then blanks over `surplus` characters
    /// that were shown after it. The cursor is at the line's end then.
    fn show_from(&mut self, at: usize, surplus: usize, echo: &mut impl Write) {
        for character in &self.line[at..] {
            let _ = echo.write_char(*character);
        }
        write_repeated(echo, " ", surplus);
        write_repeated(echo, "\x08", surplus);
        self.cursor = self.line.len();
    }

    fn move_to(&mut self, cursor: usize, echo: &mut impl Write) {
        if cursor < self.cursor {
            write_repeated(echo, "\x08", self.cursor - cursor);
        } else {
            for character in &self.line[self.cursor..cursor] {
                let _ = echo.write_char(*character);
            }
        }
        self.cursor = cursor;
    }
}

fn write_repeated(echo: &mut impl Write, text: &str, times: usize) {
    for _ in 0..times {
        let _ = echo.write_str(text);
    }
}

enum Key {
    Character(char),
    Enter,
    Cancel,
    Left,
    Right,
    Up,
    Down,
    Home,
    End,
    Backspace,
    Delete,
    DeleteToEnd,
    DeleteToStart,
    DeleteWord,
    Redraw,
}

/// Bytes to keys: UTF-8, control characters, and the escape sequences terminals send.
#[derive(Default)]
struct Decoder {
    state: State,
    utf8: [u8; 4],
    utf8_length: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Plain,
    Escape,
    /// After `ESC [` or `ESC O`; the number so far.
    Sequence(u8),
}

impl Decoder {
    fn feed(&mut self, byte: u8) -> Option<Key> {
        match self.state {
            State::Plain => self.plain(byte),
            State::Escape => {
                self.state = match byte {
                    b'[' | b'O' => State::Sequence(0),
                    _ => State::Plain,
                };
                None
            }
            State::Sequence(number) => self.sequence(number, byte),
        }
    }

    fn sequence(&mut self, number: u8, byte: u8) -> Option<Key> {
        self.state = State::Plain;
        match (byte, number) {
            (b'0'..=b'9', _) => {
                let number = number.saturating_mul(10).saturating_add(byte - b'0');
                self.state = State::Sequence(number);
                None
            }
            // Modifiers, as in `ESC [ 1 ; 5 C`: the key is what counts.
            (b';', _) => {
                self.state = State::Sequence(0);
                None
            }
            (b'A', _) => Some(Key::Up),
            (b'B', _) => Some(Key::Down),
            (b'C', _) => Some(Key::Right),
            (b'D', _) => Some(Key::Left),
            (b'H', _) | (b'~', 1 | 7) => Some(Key::Home),
            (b'F', _) | (b'~', 4 | 8) => Some(Key::End),
            (b'~', 3) => Some(Key::Delete),
            _ => None,
        }
    }

    fn plain(&mut self, byte: u8) -> Option<Key> {
        const fn control(letter: u8) -> u8 {
            letter & 0x1f
        }
        const CTRL_A: u8 = control(b'A');
        const CTRL_B: u8 = control(b'B');
        const CTRL_C: u8 = control(b'C');
        const CTRL_D: u8 = control(b'D');
        const CTRL_E: u8 = control(b'E');
        const CTRL_F: u8 = control(b'F');
        const CTRL_K: u8 = control(b'K');
        const CTRL_L: u8 = control(b'L');
        const CTRL_N: u8 = control(b'N');
        const CTRL_P: u8 = control(b'P');
        const CTRL_U: u8 = control(b'U');
        const CTRL_W: u8 = control(b'W');
        match byte {
            b'\r' | b'\n' => Some(Key::Enter),
            0x1b => {
                self.state = State::Escape;
                None
            }
            0x08 | 0x7f => Some(Key::Backspace),
            CTRL_A => Some(Key::Home),
            CTRL_B => Some(Key::Left),
            CTRL_C => Some(Key::Cancel),
            CTRL_D => Some(Key::Delete),
            CTRL_E => Some(Key::End),
            CTRL_F => Some(Key::Right),
            CTRL_K => Some(Key::DeleteToEnd),
            CTRL_L => Some(Key::Redraw),
            CTRL_N => Some(Key::Down),
            CTRL_P => Some(Key::Up),
            CTRL_U => Some(Key::DeleteToStart),
            CTRL_W => Some(Key::DeleteWord),
            b' '..=b'~' => Some(Key::Character(char::from(byte))),
            0x80.. => self.utf8(byte),
            _ => None,
        }
    }

    fn utf8(&mut self, byte: u8) -> Option<Key> {
        let leads = byte >= 0xc0;
        if leads {
            self.utf8_length = 0;
        }
        *self.utf8.get_mut(self.utf8_length)? = byte;
        self.utf8_length += 1;
        let text = core::str::from_utf8(&self.utf8[..self.utf8_length]);
        let character = text.ok()?.chars().next()?;
        self.utf8_length = 0;
        Some(Key::Character(character))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal would show on the prompt's line.
    #[derive(Default)]
    struct Terminal {
        cells: Vec<char>,
        cursor: usize,
    }

    impl Write for Terminal {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            for character in text.chars() {
                match character {
                    '\x08' => {
                        self.cursor = self
                            .cursor
                            .checked_sub(1)
                            .expect("moved left of the prompt")
                    }
                    '\n' => (self.cells, self.cursor) = (Vec::new(), 0),
                    _ => {
                        if self.cursor == self.cells.len() {
                            self.cells.push(character);
                        } else {
                            self.cells[self.cursor] = character;
                        }
                        self.cursor += 1;
                    }
                }
            }
            Ok(())
        }
    }

    /// Types the bytes; the terminal must always show the line and the cursor as the editor has them.
    fn type_in(editor: &mut Editor, bytes: &[u8]) -> Vec<Event> {
        let mut terminal = Terminal::default();
        let mut events = Vec::new();
        for byte in bytes {
            let event = editor.feed(*byte, &mut terminal);
            let shown: String = terminal.cells.iter().collect();
            let line: String = editor.line.iter().collect();
            assert_eq!(shown.trim_end(), line.trim_end());
            assert_eq!(terminal.cursor, editor.cursor);
            if event != Event::None {
                events.push(event);
            }
        }
        events
    }

    fn line(text: &str) -> Event {
        Event::Line(text.into())
    }

    #[test]
    fn lines_end_at_carriage_return_line_feed_or_both() {
        let mut editor = Editor::new("> ");
        let events = type_in(&mut editor, b"one\rtwo\nthree\r\nfour\r");
        assert_eq!(events, ["one", "two", "three", "four"].map(line));
    }

    #[test]
    fn editing_in_the_middle() {
        let mut editor = Editor::new("> ");
        // Left twice, insert; home, delete; end; backspace.
        assert_eq!(
            type_in(&mut editor, b"acd\x1b[D\x1b[Db\x1b[H\x1b[3~\x1b[Fx\x7fe\r"),
            [line("bcde")]
        );
        // ^A ^K empties; ^U deletes before the cursor; ^W the word before it.
        assert_eq!(type_in(&mut editor, b"abc\x01\x0bxyz\r"), [line("xyz")]);
        assert_eq!(type_in(&mut editor, b"abc\x1b[D\x15\r"), [line("c")]);
        assert_eq!(
            type_in(&mut editor, b"one two  \x17three\r"),
            [line("one three")]
        );
        // At the ends nothing happens.
        assert_eq!(
            type_in(&mut editor, b"\x7f\x1b[D\x1b[C\x04a\x1b[C\x04\r"),
            [line("a")]
        );
    }

    #[test]
    fn history_goes_back_and_forth_and_keeps_the_draft() {
        let mut editor = Editor::new("> ");
        type_in(&mut editor, b"first\rsecond\rsecond\r\r");
        assert_eq!(
            type_in(&mut editor, b"dr\x1b[A\x1b[A\x1b[A\r"),
            [line("first")]
        );
        assert_eq!(
            type_in(&mut editor, b"dr\x1b[A\x1b[A\x1b[B\x1b[B\x1b[Baft\r"),
            [line("draft")]
        );
        assert_eq!(type_in(&mut editor, b"\x1b[A!\r"), [line("draft!")]);
    }

    #[test]
    fn control_c_gives_the_line_up() {
        let mut editor = Editor::new("> ");
        let mut terminal = Terminal::default();
        for byte in b"abc" {
            editor.feed(*byte, &mut terminal);
        }
        assert_eq!(editor.feed(3, &mut terminal), Event::Cancelled);
        assert_eq!(type_in(&mut editor, b"d\r"), [line("d")]);
    }

    #[test]
    fn utf8_is_one_character_and_broken_utf8_none() {
        let mut editor = Editor::new("> ");
        assert_eq!(type_in(&mut editor, "ä€\x7f😀\r".as_bytes()), [line("ä😀")]);
        assert_eq!(
            type_in(&mut editor, b"a\xff\x80\x80\x80\x80\x80\xe2b\r"),
            [line("ab")]
        );
    }

    #[test]
    fn any_bytes_leave_editor_and_terminal_agreeing() {
        // ^C and ^L write more than the line itself; they are left out here.
        const KEYS: &[u8] = b"ab \x01\x02\x04\x05\x06\x08\x0b\x0e\x10\x15\x17\x1b[ABCDHF3~;19O\r";
        let mut state = 0x1234_5678_u32;
        let mut editor = Editor::new("> ");
        let keys: Vec<u8> = core::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            KEYS[(state >> 16) as usize % KEYS.len()]
        })
        .take(20_000)
        .collect();
        type_in(&mut editor, &keys);
    }

    #[test]
    fn a_line_has_a_longest_length() {
        let mut editor = Editor::new("> ");
        let mut terminal = String::new();
        for _ in 0..MAX_CHARACTERS + 10 {
            editor.feed(b'x', &mut terminal);
        }
        assert_eq!(
            editor.feed(b'\r', &mut terminal),
            line(&"x".repeat(MAX_CHARACTERS))
        );
    }
}
