//! The line editor: bytes of a terminal in, echo out, whole lines at the end. It does no input and waits for nothing.
//! docs/decisions/shell.md says why it is ours.

mod keys;
mod row;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;

use keys::{Decoder, Key};
use row::Row;

/// The longest line.
pub const MAX_CHARACTERS: usize = 1024;
const MAX_HISTORY: usize = 64;
/// Says that nothing came of a key.
pub const BELL: char = '\x07';

/// What a byte led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing the caller needs to know.
    None,
    /// The line is finished.
    Line(String),
    /// The line is finished, and more was typed than it can hold. A part of what was meant may do harm.
    TooLong,
    /// The line was given up with Ctrl-C.
    Cancelled,
    /// What is before the cursor is to be completed.
    Complete,
    /// The terminal says in which column its cursor is.
    Column(u16),
}

/// A line being typed, and the lines typed before.
pub struct Editor {
    prompt: &'static str,
    line: Vec<char>,
    /// Where the next character goes.
    cursor: usize,
    /// Characters were dropped for which the line has no room.
    overflowed: bool,
    history: VecDeque<String>,
    /// How far back in the history we are (0: the line being typed), and that line.
    back: usize,
    draft: Vec<char>,
    /// What was deleted last, more than a character of it.
    deleted: Vec<char>,
    search: Option<Search>,
    row: Row,
    input: Decoder,
    /// The last byte was a carriage return: a line feed right after it is the same key.
    after_return: bool,
}

/// A search through the history, while it goes on.
#[derive(Default)]
struct Search {
    wanted: String,
    /// Which line of the history is shown.
    found: Option<usize>,
    failed: bool,
    /// The line as it was before, and the cursor.
    before: (Vec<char>, usize),
}

impl Editor {
    /// An editor for lines after this prompt.
    pub fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            line: Vec::new(),
            cursor: 0,
            overflowed: false,
            history: VecDeque::new(),
            back: 0,
            draft: Vec::new(),
            deleted: Vec::new(),
            search: None,
            row: Row::default(),
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
        let event = match self.search_with(key, echo) {
            true => Event::None,
            false => self.press(key, echo),
        };
        if matches!(event, Event::None) {
            self.show(echo);
        }
        event
    }

    fn press(&mut self, key: Key, echo: &mut impl Write) -> Event {
        let end = self.line.len();
        match key {
            Key::Enter => return self.finish(echo),
            Key::Cancel => {
                self.reset();
                let _ = echo.write_str("^C\n");
                return Event::Cancelled;
            }
            Key::Tab => return Event::Complete,
            Key::Column(column) => return Event::Column(column),
            Key::Character(character) => self.insert(character, echo),
            Key::Left => self.cursor = self.left(),
            Key::Right => self.cursor = self.right(),
            Key::WordLeft => self.cursor = self.word_left(is_word),
            Key::WordRight => self.cursor = self.word_right(),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = end,
            Key::Backspace => drop(self.delete(self.left()..self.cursor)),
            Key::Delete => drop(self.delete(self.cursor..self.right())),
            Key::DeleteToEnd => self.cut(self.cursor..end),
            Key::DeleteToStart => self.cut(0..self.cursor),
            Key::DeleteWord => self.cut(self.word_left(|it| it != ' ')..self.cursor),
            Key::DeleteWordLeft => self.cut(self.word_left(is_word)..self.cursor),
            Key::DeleteWordRight => self.cut(self.cursor..self.word_right()),
            Key::Yank => {
                for character in self.deleted.clone() {
                    self.insert(character, echo);
                }
            }
            Key::Up => self.recall(self.back + 1),
            Key::Down => self.recall(self.back.saturating_sub(1)),
            Key::Search => {
                let before = (self.line.clone(), self.cursor);
                self.search = Some(Search {
                    before,
                    ..Search::default()
                });
            }
            Key::Redraw => {
                let _ = echo.write_str("\x1b[2J\x1b[H");
                self.row.forget();
            }
            Key::Abort => {}
        }
        Event::None
    }

    /// What is before the cursor.
    pub fn before_cursor(&self) -> String {
        let before = self.line.get(..self.cursor);
        before.unwrap_or_default().iter().collect()
    }

    /// Puts `text` in the place of so many characters before the cursor.
    pub fn replace(&mut self, characters: usize, text: &str, echo: &mut impl Write) {
        self.delete(self.cursor.saturating_sub(characters)..self.cursor);
        for character in text.chars() {
            self.insert(character, echo);
        }
        self.show(echo);
    }

    /// How wide the terminal is, if it is known.
    pub fn set_columns(&mut self, columns: Option<usize>, echo: &mut impl Write) {
        self.row.set_columns(columns);
        self.show(echo);
    }

    /// Writes prompt and line to an empty line of the terminal.
    pub fn show_again(&mut self, echo: &mut impl Write) {
        self.row.forget();
        self.show(echo);
    }

    fn show(&mut self, echo: &mut impl Write) {
        let Self {
            row, line, cursor, ..
        } = self;
        match &self.search {
            None => row.show(self.prompt, line, *cursor, echo),
            Some(search) => {
                let failed = if search.failed { "failed " } else { "" };
                let prompt = format!("({failed}search)`{}': ", search.wanted);
                row.show(&prompt, line, *cursor, echo);
            }
        }
    }

    fn finish(&mut self, echo: &mut impl Write) -> Event {
        let _ = echo.write_char('\n');
        let line: String = self.line.iter().collect();
        let overflowed = self.overflowed;
        self.reset();
        if overflowed {
            return Event::TooLong;
        }
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
        self.overflowed = false;
        self.search = None;
        self.cursor = 0;
        self.back = 0;
        self.row.forget();
    }

    fn insert(&mut self, character: char, echo: &mut impl Write) {
        if self.line.len() < MAX_CHARACTERS {
            self.line.insert(self.cursor, character);
            self.cursor += 1;
        } else if !self.overflowed {
            self.overflowed = true;
            let _ = echo.write_char(BELL);
        }
    }

    fn delete(&mut self, range: Range<usize>) -> Vec<char> {
        // Whoever deletes has seen that there was no room.
        self.overflowed = false;
        self.cursor = range.start;
        self.line.drain(range).collect()
    }

    fn cut(&mut self, range: Range<usize>) {
        let deleted = self.delete(range);
        if !deleted.is_empty() {
            self.deleted = deleted;
        }
    }

    /// The place one character to the left: before what has a column of its own.
    fn left(&self) -> usize {
        let before = self.line.get(..self.cursor).unwrap_or_default();
        before
            .iter()
            .rposition(|it| row::columns(*it) > 0)
            .unwrap_or(0)
    }

    fn right(&self) -> usize {
        let after = self.line.iter().skip(self.cursor + 1);
        let accents = after.take_while(|it| row::columns(**it) == 0).count();
        (self.cursor + 1 + accents).min(self.line.len())
    }

    fn word_left(&self, is_word: impl Fn(char) -> bool) -> usize {
        let before = self.line.get(..self.cursor).unwrap_or_default();
        let end = before.iter().rposition(|it| is_word(*it));
        let word = before.get(..end.map_or(0, |at| at + 1));
        let start = word
            .unwrap_or_default()
            .iter()
            .rposition(|it| !is_word(*it));
        start.map_or(0, |at| at + 1)
    }

    fn word_right(&self) -> usize {
        let after = |from: usize| self.line.iter().skip(from);
        let start = self.cursor + after(self.cursor).take_while(|it| !is_word(**it)).count();
        start + after(start).take_while(|it| is_word(**it)).count()
    }

    fn recall(&mut self, back: usize) {
        if back == self.back {
            return;
        }
        let recalled = match back {
            0 => core::mem::take(&mut self.draft),
            _ => match self.history.get(back - 1) {
                Some(line) => line.chars().collect(),
                None => return,
            },
        };
        let replaced = core::mem::replace(&mut self.line, recalled);
        if self.back == 0 {
            self.draft = replaced;
        }
        self.back = back;
        self.overflowed = false;
        self.cursor = self.line.len();
    }

    /// What a key does to a search that goes on. `false` if there is none, or the key ends it and does what it does else.
    fn search_with(&mut self, key: Key, echo: &mut impl Write) -> bool {
        let Some(search) = &mut self.search else {
            return false;
        };
        let start = match key {
            Key::Character(character) if search.wanted.chars().count() < MAX_CHARACTERS => {
                search.wanted.push(character);
                search.found.unwrap_or(0)
            }
            Key::Backspace => {
                search.wanted.pop();
                0
            }
            Key::Search => search.found.map_or(0, |found| found + 1),
            Key::Abort => {
                (self.line, self.cursor) = core::mem::take(&mut search.before);
                self.search = None;
                return true;
            }
            // The terminal's answer is no key.
            Key::Column(_) => return false,
            _ => {
                // What was found is a line like any other from here on.
                (self.back, self.search) = (0, None);
                self.show(echo);
                return false;
            }
        };
        let again = key == Key::Search;
        let current: String = self.line.iter().collect();
        let mut lines = self.history.iter().enumerate().skip(start);
        let found = lines.find(|(_, line)| {
            let same = again && **line == current;
            line.contains(&search.wanted) && !same
        });
        search.failed = found.is_none();
        if let Some((index, line)) = found.filter(|_| !search.wanted.is_empty()) {
            let place = line.find(&search.wanted).unwrap_or(0);
            self.cursor =
                line.chars().count() - line.get(place..).map_or(0, |it| it.chars().count());
            self.line = line.chars().collect();
            search.found = Some(index);
        } else if search.failed {
            let _ = echo.write_char(BELL);
        }
        true
    }
}

/// What a word is made of, for those who move by words: not what parts names of files and options.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use core::num::NonZero;
    use std::string::ToString;

    use super::*;

    const PROMPT: &str = "> ";
    const UP: &str = "\x1b[A";
    const DOWN: &str = "\x1b[B";
    const LEFT: &str = "\x1b[D";
    const RIGHT: &str = "\x1b[C";
    const HOME: &str = "\x1b[H";
    const END: &str = "\x1b[F";

    fn size(cells: u16) -> NonZero<u16> {
        NonZero::new(cells).unwrap()
    }

    /// An editor on a terminal.
    struct Desk {
        editor: Editor,
        terminal: Terminal,
    }

    struct Terminal(vt100::Parser);

    impl Write for Terminal {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            self.0.process(text.replace('\n', "\r\n").as_bytes());
            Ok(())
        }
    }

    impl Desk {
        /// At a terminal that is wider than any line.
        fn wide() -> Self {
            Self::new(2 * MAX_CHARACTERS as u16 + 10, None)
        }

        /// At a terminal that has said how wide it is.
        fn of(columns: u16) -> Self {
            Self::new(columns, Some(columns.into()))
        }

        fn new(columns: u16, known: Option<usize>) -> Self {
            let mut desk = Self {
                editor: Editor::new(PROMPT),
                terminal: Terminal(vt100::Parser::new(size(3), size(columns), 0)),
            };
            desk.editor.set_columns(known, &mut desk.terminal);
            desk
        }

        /// The row with the cursor, and the column.
        fn row(&self) -> (String, usize) {
            let screen = self.terminal.0.screen();
            let (row, column) = screen.cursor_position();
            let text = screen
                .rows(0, screen.size().1.get())
                .nth(row.into())
                .unwrap();
            (text.trim_end().to_string(), column.into())
        }

        /// Types; the terminal always shows the line and the cursor as the editor has them. Gives the events.
        fn types(&mut self, keys: &str) -> Vec<Event> {
            let mut events = Vec::new();
            for byte in keys.bytes() {
                match self.editor.feed(byte, &mut self.terminal) {
                    Event::None if self.editor.search.is_some() => {}
                    Event::None => self.check(),
                    event => {
                        if matches!(event, Event::Line(_) | Event::TooLong | Event::Cancelled) {
                            self.editor.show_again(&mut self.terminal);
                        }
                        self.check();
                        events.push(event);
                    }
                }
            }
            events
        }

        fn check(&self) {
            let (shown, column) = self.row();
            let Editor {
                line, cursor, row, ..
            } = &self.editor;
            let text = |part: &[char]| part.iter().collect::<String>();
            let width = |part: &[char]| part.iter().map(|it| row::columns(*it)).sum::<usize>();
            if let Some(columns) = row.columns() {
                let last = usize::from(self.terminal.0.screen().size().1.get()) - 1;
                assert!(column < columns && columns - 1 == last);
                let part = shown.strip_prefix(PROMPT).unwrap_or_default();
                if width(line) + PROMPT.len() > last {
                    // A part of the line, the cursor's, with marks where there is more.
                    let marked = part.trim_start_matches('<').trim_end_matches('>');
                    assert!(text(line).contains(marked.trim_end()), "{shown:?}");
                    assert!(part.starts_with('<') || text(line).starts_with(marked));
                    let screen = self.terminal.0.screen();
                    let (row, column) = screen.cursor_position();
                    let under = screen.cell(row, column).unwrap().contents();
                    let expected = line.get(*cursor).map(char::to_string);
                    let expected = expected.unwrap_or_default();
                    assert_eq!(under.trim(), expected.trim(), "{shown:?}");
                    return;
                }
            }
            let expected = PROMPT.to_string() + &text(line);
            assert_eq!(shown, expected.trim_end());
            assert_eq!(column, PROMPT.len() + width(&line[..*cursor]));
        }
    }

    fn line(text: &str) -> Event {
        Event::Line(text.into())
    }

    #[test]
    fn lines_end_at_carriage_return_line_feed_or_both() {
        let events = Desk::wide().types("one\rtwo\nthree\r\nfour\r");
        assert_eq!(events, ["one", "two", "three", "four"].map(line));
    }

    #[test]
    fn editing_in_the_middle() {
        let mut desk = Desk::wide();
        let keys = std::format!("acd{LEFT}{LEFT}b{HOME}\x1b[3~{END}x\x7fe\r");
        assert_eq!(desk.types(&keys), [line("bcde")]);
        // ^A ^K empties; ^U deletes before the cursor; ^W the word before it.
        assert_eq!(desk.types("abc\x01\x0bxyz\r"), [line("xyz")]);
        assert_eq!(desk.types("abc\x1b[D\x15\r"), [line("c")]);
        assert_eq!(desk.types("one two  \x17three\r"), [line("one three")]);
        // At the ends nothing happens.
        let keys = std::format!("\x7f{LEFT}{RIGHT}\x04a{RIGHT}\x04\r");
        assert_eq!(desk.types(&keys), [line("a")]);
    }

    #[test]
    fn words_are_moved_over_and_deleted_and_come_back() {
        let mut desk = Desk::wide();
        // Alt-B twice is before `b`, Ctrl-Left before `a`, Ctrl-Right and Alt-F after `b`.
        assert_eq!(
            desk.types("cat /a/b.txt\x1bb\x1bb1\x1b[1;5D2\x1b[1;5C3\x1bf4\r"),
            [line("cat /a/21b3.txt4")]
        );
        // Alt-Backspace stops at a slash, Ctrl-W at a blank; Alt-D and Ctrl-Delete delete forwards; ^Y brings it back.
        assert_eq!(desk.types("cat /a/b\x1b\x7fc\r"), [line("cat /a/c")]);
        assert_eq!(desk.types("cat /a/b\x17c\r"), [line("cat c")]);
        assert_eq!(
            desk.types("one two three\x01\x1bd\x1b[3;5~\x05\x19\r"),
            [line(" three two")]
        );
    }

    #[test]
    fn history_goes_back_and_forth_and_keeps_the_draft() {
        let mut desk = Desk::wide();
        desk.types("first\rsecond\rsecond\r\r");
        let keys = std::format!("dr{UP}{UP}{UP}\r");
        assert_eq!(desk.types(&keys), [line("first")]);
        let keys = std::format!("dr{UP}{UP}{DOWN}{DOWN}{DOWN}aft\r");
        assert_eq!(desk.types(&keys), [line("draft")]);
        assert_eq!(desk.types(&std::format!("{UP}!\r")), [line("draft!")]);
    }

    #[test]
    fn a_search_finds_what_was_typed_before() {
        let mut desk = Desk::wide();
        desk.types("cat a.txt\rblk hash blk0\rcat b.txt\rblk hash blk0\recho\r");
        // The newest, then the one before it; the same line twice is found once.
        desk.types("dr\x12bl");
        assert_eq!(desk.row().0, "(search)`bl': blk hash blk0");
        desk.types("\x12");
        assert_eq!(desk.row().0, "(failed search)`bl': blk hash blk0");
        assert_eq!(desk.types("\r"), [line("blk hash blk0")]);
        desk.types("\x12cat\x12");
        assert_eq!(desk.row().0, "(search)`cat': cat a.txt");
        // Any other key ends it with the line that was found; the cursor is where the search found it.
        assert_eq!(desk.types("\x1b[C!\r"), [line("c!at a.txt")]);
        // ^G gives the line back as it was; ^C gives that up, too.
        assert_eq!(desk.types("draft\x12echo\x07!\r"), [line("draft!")]);
        assert_eq!(desk.types("draft\x12echo\x03"), [Event::Cancelled]);
        // A letter taken back finds the newer line again.
        desk.types("\x12b.t\x7f\x7f");
        assert_eq!(desk.row().0, "(search)`b': blk hash blk0");
        assert_eq!(desk.types("\r"), [line("blk hash blk0")]);
        // Nothing is found for nothing.
        assert_eq!(desk.types("x\x12\r"), [line("x")]);
    }

    #[test]
    fn control_c_gives_the_line_up() {
        let mut desk = Desk::wide();
        assert_eq!(desk.types("abc\x03"), [Event::Cancelled]);
        assert_eq!(desk.types("d\r"), [line("d")]);
    }

    #[test]
    fn characters_have_their_width() {
        let mut desk = Desk::wide();
        assert_eq!(desk.types("ä€\x7f😀\r"), [line("ä😀")]);
        // The row follows the editor: that is checked at each key.
        let keys = std::format!("漢字{LEFT}x{LEFT}{LEFT}y{END}!\x7f\r");
        assert_eq!(desk.types(&keys), [line("y漢x字")]);
        // An accent of its own is deleted and passed over with its letter.
        let keys = std::format!("ae\u{301}b{LEFT}{LEFT}x{RIGHT}\x7f\r");
        assert_eq!(desk.types(&keys), [line("axb")]);
    }

    #[test]
    fn broken_utf8_and_control_characters_are_nothing() {
        let mut desk = Desk::wide();
        let mut events = Vec::new();
        for byte in b"a\xff\x80\x80\x80\x80\x80\xe2b\xc2\x9bc\r" {
            match desk.editor.feed(*byte, &mut desk.terminal) {
                Event::None => desk.check(),
                event => events.push(event),
            }
        }
        assert_eq!(events, [line("abc")]);
    }

    #[test]
    fn sequences_that_are_not_known_leave_nothing_behind() {
        let mut desk = Desk::wide();
        let keys = "\x1b[?1;2c\x1b[200;3u\x1b[15~\x1b[<0;1;1Ma\x1bOP\x1b[1\x1b[Db\r";
        assert_eq!(desk.types(keys), [line("ba")]);
        // One that is broken off by a key.
        assert_eq!(desk.types("a\x1b[1;\x7fb\r"), [line("b")]);
    }

    #[test]
    fn a_terminal_says_how_wide_it_is() {
        let events = Desk::wide().types("ec\x1b[24;100Rho\r");
        assert_eq!(events, [Event::Column(100), line("echo")]);
    }

    #[test]
    fn a_tab_completes_unless_it_was_pasted() {
        let mut desk = Desk::wide();
        assert_eq!(desk.types("ca\t"), [Event::Complete]);
        assert_eq!(desk.editor.before_cursor(), "ca");
        desk.editor.replace(2, "cat ", &mut desk.terminal);
        desk.check();
        let pasted = "\x1b[200~a\tb\r\tc\x1b[201~\t\r";
        let events = [line("cat a b"), Event::Complete, line(" c")];
        assert_eq!(desk.types(pasted), events);
    }

    #[test]
    fn a_line_longer_than_the_row_moves_in_it() {
        let mut desk = Desk::of(24);
        desk.types("0123456789abcdefghi");
        assert_eq!(desk.row().0, "> 0123456789abcdefghi");
        // The last column stays free.
        desk.types("jkl");
        let (shown, column) = desk.row();
        assert!(
            shown.starts_with("> <") && shown.ends_with("jkl"),
            "{shown}"
        );
        assert!(column < 23);
        desk.types(HOME);
        assert_eq!(desk.row(), ("> 0123456789abcdefghi>".into(), 2));
        for _ in 0..22 {
            desk.types(RIGHT);
        }
        for _ in 0..22 {
            desk.types(LEFT);
        }
        assert_eq!(desk.row(), ("> 0123456789abcdefghi>".into(), 2));
        // What becomes short enough is shown whole.
        desk.types(&std::format!("{END}\x7f\x7f\x7f"));
        assert_eq!(desk.row().0, "> 0123456789abcdefghi");
        assert_eq!(desk.types("\r"), [line("0123456789abcdefghi")]);
    }

    #[test]
    fn any_keys_leave_editor_and_terminal_agreeing() {
        const KEYS: &[&str] = &[
            "a",
            "b",
            " ",
            "/",
            "ä",
            "漢",
            "😀",
            "\x01",
            "\x02",
            "\x04",
            "\x05",
            "\x06",
            "\x08",
            "\x0b",
            "\x0e",
            "\x10",
            "\x12",
            "\x15",
            "\x17",
            "\x19",
            UP,
            DOWN,
            LEFT,
            RIGHT,
            HOME,
            END,
            "\x1b[3~",
            "\x1b[1;5C",
            "\x1b[1;5D",
            "\x1bd",
            "\x1b\x7f",
            "\x1b[200~",
            "\x1b",
            "[",
            "3",
            ";",
            "O",
            "\x07",
            "\x0c",
            "\r",
            "abc def ghi",
            "x漢y",
        ];
        for mut desk in [Desk::wide(), Desk::of(21), Desk::of(40)] {
            let mut state = 0x1234_5678_u32;
            for _ in 0..4_000 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let key = KEYS[(state >> 16) as usize % KEYS.len()];
                desk.types(key);
            }
        }
    }

    #[test]
    fn a_line_that_does_not_fit_is_refused_whole() {
        let mut desk = Desk::wide();
        let most = "x".repeat(MAX_CHARACTERS);
        assert_eq!(desk.types(&std::format!("{most}\r")), [line(&most)]);
        // A part of a command may be another command.
        assert_eq!(desk.types(&std::format!("{most}yz\r")), [Event::TooLong]);
        assert_eq!(
            desk.types(&std::format!("{most}y\x7fz\r")),
            [line(&(most[1..].to_string() + "z"))]
        );
        assert_eq!(desk.types("short\r"), [line("short")]);
    }
}
