//! Bytes to keys: UTF-8, control characters, and the escape sequences that terminals send.

/// A key, or what a terminal says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Character(char),
    Enter,
    Tab,
    Cancel,
    Abort,
    Search,
    Left,
    Right,
    WordLeft,
    WordRight,
    Up,
    Down,
    Home,
    End,
    Backspace,
    Delete,
    DeleteToEnd,
    DeleteToStart,
    /// Back to a blank, as Ctrl-W does.
    DeleteWord,
    /// Back to the start of a word, which a slash or a dot ends, too.
    DeleteWordLeft,
    DeleteWordRight,
    Yank,
    Redraw,
    /// The column that the terminal's cursor is in, which was asked for.
    Column(u16),
}

/// A decoder of what comes byte by byte.
#[derive(Default)]
pub(super) struct Decoder {
    state: State,
    utf8: [u8; 4],
    utf8_length: usize,
    /// Between the marks around what is pasted.
    pasting: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Plain,
    Escape,
    /// After `ESC [` or `ESC O`; the last number but one and the last so far.
    Sequence(u16, u16),
}

const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;

const fn control(letter: u8) -> u8 {
    letter & 0x1f
}

impl Decoder {
    pub(super) fn feed(&mut self, byte: u8) -> Option<Key> {
        let state = core::mem::take(&mut self.state);
        match (state, byte) {
            (_, ESCAPE) => {
                self.state = State::Escape;
                None
            }
            // A sequence that was not finished: the key counts.
            (State::Plain, _) | (_, ..0x20) | (State::Sequence(..), DELETE) => self.plain(byte),
            (State::Escape, _) => self.escape(byte),
            (State::Sequence(before, number), _) => self.sequence(before, number, byte),
        }
    }

    /// Alt and a key.
    fn escape(&mut self, byte: u8) -> Option<Key> {
        match byte {
            b'[' | b'O' => {
                self.state = State::Sequence(0, 0);
                None
            }
            b'b' => Some(Key::WordLeft),
            b'f' => Some(Key::WordRight),
            b'd' => Some(Key::DeleteWordRight),
            DELETE => Some(Key::DeleteWordLeft),
            _ => None,
        }
    }

    fn sequence(&mut self, before: u16, number: u16, byte: u8) -> Option<Key> {
        // The modifiers in `ESC [ 1 ; 5 C`, less 1: Alt is 2, Ctrl is 4.
        let by_words = before > 0 && number.saturating_sub(1) & 0b110 != 0;
        let first = if before > 0 { before } else { number };
        match byte {
            b'0'..=b'9' => {
                let number = number
                    .saturating_mul(10)
                    .saturating_add((byte - b'0').into());
                self.state = State::Sequence(before, number);
                None
            }
            b';' => {
                self.state = State::Sequence(number.max(1), 0);
                None
            }
            b'A' => Some(Key::Up),
            b'B' => Some(Key::Down),
            b'C' if by_words => Some(Key::WordRight),
            b'D' if by_words => Some(Key::WordLeft),
            b'C' => Some(Key::Right),
            b'D' => Some(Key::Left),
            b'H' => Some(Key::Home),
            b'F' => Some(Key::End),
            b'R' if before > 0 => Some(Key::Column(number)),
            b'~' => match first {
                1 | 7 => Some(Key::Home),
                4 | 8 => Some(Key::End),
                3 if by_words => Some(Key::DeleteWordRight),
                3 => Some(Key::Delete),
                200 | 201 => {
                    self.pasting = first == 200;
                    None
                }
                _ => None,
            },
            0x40..=0x7e => None,
            // More of a sequence that is not known.
            _ => {
                self.state = State::Sequence(before, number);
                None
            }
        }
    }

    fn plain(&mut self, byte: u8) -> Option<Key> {
        const CTRL_A: u8 = control(b'A');
        const CTRL_B: u8 = control(b'B');
        const CTRL_C: u8 = control(b'C');
        const CTRL_D: u8 = control(b'D');
        const CTRL_E: u8 = control(b'E');
        const CTRL_F: u8 = control(b'F');
        const CTRL_G: u8 = control(b'G');
        const CTRL_H: u8 = control(b'H');
        const CTRL_K: u8 = control(b'K');
        const CTRL_L: u8 = control(b'L');
        const CTRL_N: u8 = control(b'N');
        const CTRL_P: u8 = control(b'P');
        const CTRL_R: u8 = control(b'R');
        const CTRL_U: u8 = control(b'U');
        const CTRL_W: u8 = control(b'W');
        const CTRL_Y: u8 = control(b'Y');
        match byte {
            b'\r' | b'\n' => Some(Key::Enter),
            b'\t' if self.pasting => Some(Key::Character(' ')),
            b'\t' => Some(Key::Tab),
            CTRL_H | DELETE => Some(Key::Backspace),
            CTRL_A => Some(Key::Home),
            CTRL_B => Some(Key::Left),
            CTRL_C => Some(Key::Cancel),
            CTRL_D => Some(Key::Delete),
            CTRL_E => Some(Key::End),
            CTRL_F => Some(Key::Right),
            CTRL_G => Some(Key::Abort),
            CTRL_K => Some(Key::DeleteToEnd),
            CTRL_L => Some(Key::Redraw),
            CTRL_N => Some(Key::Down),
            CTRL_P => Some(Key::Up),
            CTRL_R => Some(Key::Search),
            CTRL_U => Some(Key::DeleteToStart),
            CTRL_W => Some(Key::DeleteWord),
            CTRL_Y => Some(Key::Yank),
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
        let text = core::str::from_utf8(self.utf8.get(..self.utf8_length)?);
        let character = text.ok()?.chars().next()?;
        self.utf8_length = 0;
        // Those of U+0080 to U+009F control terminals, too.
        (!character.is_control()).then_some(Key::Character(character))
    }
}
