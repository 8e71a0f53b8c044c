//! The terminal that shows the console, if there is one.
//!
//! A serial port does not know what is at its other end: a person, a file, a program that reads every line. So the guest is
//! told, by `terminal=plain` or `terminal=color` among its options or by the command of that name. Whatever makes sense on a
//! screen alone (colors, a line that changes in place) is written only then. How wide it is, the terminal says when the
//! prompt asks for it: a window changes its size while the guest runs, and options are read once.

use core::fmt;
use core::str::FromStr;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use anstyle::{AnsiColor, Style};
use log::Level;

/// Puts the cursor as far right as it goes, asks where it is (ECMA-48 CPR), and puts it back.
pub const ASK_COLUMNS: &str = "\x1b7\x1b[999C\x1b[6n\x1b8";
/// What is pasted comes between two marks, so that a tab in it is no key. To be off while commands run.
pub const MARK_PASTES: &str = "\x1b[?2004h";
/// Ends [`MARK_PASTES`].
pub const MARK_NO_PASTES: &str = "\x1b[?2004l";
/// Narrower windows are taken for this wide: there is no room for anything.
const MIN_COLUMNS: u16 = 20;

static PRESENT: AtomicBool = AtomicBool::new(false);
static COLORED: AtomicBool = AtomicBool::new(false);
/// 0 as long as the terminal has not said it.
static COLUMNS: AtomicU16 = AtomicU16::new(0);

/// What shows the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that is known: what is written must make sense in a file, too.
    None,
    /// A terminal, to be used without colors.
    Plain,
    /// A terminal with colors.
    Color,
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "none" => Ok(Self::None),
            "plain" => Ok(Self::Plain),
            "color" => Ok(Self::Color),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Plain => "plain",
            Self::Color => "color",
        })
    }
}

/// Says what there is from now on.
pub fn set(kind: Kind) {
    PRESENT.store(kind != Kind::None, Ordering::Relaxed);
    COLORED.store(kind == Kind::Color, Ordering::Relaxed);
}

/// What there is.
pub fn kind() -> Kind {
    match (is_there(), COLORED.load(Ordering::Relaxed)) {
        (false, _) => Kind::None,
        (true, false) => Kind::Plain,
        (true, true) => Kind::Color,
    }
}

/// Whether there is a terminal.
pub fn is_there() -> bool {
    PRESENT.load(Ordering::Relaxed)
}

/// How many columns it has, if it said so.
pub fn columns() -> Option<usize> {
    match COLUMNS.load(Ordering::Relaxed) {
        0 => None,
        columns => Some(columns.max(MIN_COLUMNS).into()),
    }
}

/// It said how many columns it has.
pub fn set_columns(columns: u16) {
    COLUMNS.store(columns, Ordering::Relaxed);
}

/// How a message of this importance looks: `{style}text{style:#}`.
pub fn style(level: Level) -> Style {
    match level {
        Level::Error if kind() == Kind::Color => AnsiColor::Red.on_default().bold(),
        Level::Warn if kind() == Kind::Color => AnsiColor::Yellow.on_default().bold(),
        _ => Style::new(),
    }
}
