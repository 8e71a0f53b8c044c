//! One row of a terminal: what it shows, and the bytes that make it show something else.

use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;

use unicode_width::UnicodeWidthChar;

/// A row. Nothing but characters, blanks and backspaces is ever written to it, so that any terminal will do, and a file.
/// The line never reaches the last column: what comes next would be on another row, and no backspace leads back.
#[derive(Default)]
pub(super) struct Row {
    shown: Vec<char>,
    /// The terminal's cursor is before this one of them.
    cursor: usize,
    /// Columns of the terminal, if they are known.
    columns: Option<usize>,
    /// The first character of the line that is shown, if the line is longer than the row.
    start: usize,
}

impl Row {
    /// The row is empty, and the cursor at its beginning.
    pub(super) fn forget(&mut self) {
        self.shown.clear();
        self.cursor = 0;
        self.start = 0;
    }

    pub(super) fn set_columns(&mut self, columns: Option<usize>) {
        self.columns = columns;
    }

    #[cfg(test)]
    pub(super) fn columns(&self) -> Option<usize> {
        self.columns
    }

    /// Shows a prompt and a line with the cursor before one of its characters, or at its end. Of a longer line a part is
    /// shown, with `<` and `>` where more of it is.
    pub(super) fn show(
        &mut self,
        prompt: &str,
        line: &[char],
        cursor: usize,
        echo: &mut impl Write,
    ) {
        let mut wanted: Vec<char> = prompt.chars().collect();
        let mut part = 0..line.len();
        if let Some(columns) = self.columns {
            // A part of a long prompt is enough, the end.
            while width(&wanted) > columns / 2 && !wanted.is_empty() {
                wanted.remove(0);
            }
            part = self.part(line, cursor, columns - 1 - width(&wanted));
        }
        wanted.extend((part.start > 0).then_some('<'));
        let place = wanted.len() + cursor.saturating_sub(part.start);
        wanted.extend(line.get(part.clone()).unwrap_or_default());
        wanted.extend((part.end < line.len()).then_some('>'));
        self.become_this(wanted, place, echo);
    }

    /// The part of the line that is shown in so many columns. It stays where it is as long as the cursor is in it.
    fn part(&mut self, line: &[char], cursor: usize, room: usize) -> Range<usize> {
        if width(line) <= room {
            self.start = 0;
            return 0..line.len();
        }
        let between = |from: usize, to: usize| width(line.get(from..to).unwrap_or_default());
        // Two columns are for the marks, and two for the character before the cursor's.
        let room = room.saturating_sub(2);
        let is_shown = self.start < cursor && between(self.start, cursor) + 2 <= room;
        if !is_shown && (self.start > 0 || cursor > 0) {
            self.start = cursor;
            while self.start > 0 && between(self.start - 1, cursor) <= room / 2 {
                self.start -= 1;
            }
        }
        let mut end = cursor.max(self.start);
        while end < line.len() && between(self.start, end + 1) <= room {
            end += 1;
        }
        self.start..end
    }

    fn become_this(&mut self, wanted: Vec<char>, place: usize, echo: &mut impl Write) {
        let pairs = self.shown.iter().zip(&wanted);
        let mut same = pairs.take_while(|(shown, wanted)| shown == wanted).count();
        if same < self.shown.len() || same < wanted.len() {
            // What has no column of its own is drawn with what it belongs to.
            let belongs = |row: &[char], at: usize| row.get(at).is_some_and(|it| columns(*it) == 0);
            while same > 0 && (belongs(&self.shown, same) || belongs(&wanted, same)) {
                same -= 1;
            }
            self.move_to(same, echo);
            let old = width(self.shown.get(same..).unwrap_or_default());
            let rest = wanted.get(same..).unwrap_or_default();
            let surplus = old.saturating_sub(width(rest));
            write_all(echo, rest);
            write_repeated(echo, " ", surplus);
            write_repeated(echo, "\x08", surplus);
            self.cursor = wanted.len();
            self.shown = wanted;
        }
        self.move_to(place, echo);
    }

    fn move_to(&mut self, place: usize, echo: &mut impl Write) {
        let part = |from: usize, to: usize| self.shown.get(from..to).unwrap_or_default();
        match place < self.cursor {
            true => write_repeated(echo, "\x08", width(part(place, self.cursor))),
            false => write_all(echo, part(self.cursor, place)),
        }
        self.cursor = place;
    }
}

/// The columns of a character: 2 for most of East Asia's, 0 for accents that go onto the one before.
pub(super) fn columns(character: char) -> usize {
    character.width().unwrap_or(0)
}

fn width(characters: &[char]) -> usize {
    characters.iter().copied().map(columns).sum()
}

fn write_all(echo: &mut impl Write, characters: &[char]) {
    for character in characters {
        let _ = echo.write_char(*character);
    }
}

fn write_repeated(echo: &mut impl Write, text: &str, times: usize) {
    for _ in 0..times {
        let _ = echo.write_str(text);
    }
}
