//! The arguments of a command, taken word by word, and what a command may fail with.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::apps::files;
use crate::platform::number;
use crate::shell::progress::Progress;

/// Why a command failed.
#[derive(Debug)]
pub enum Error {
    /// The arguments are wrong; the shell adds the usage line. The text says which and may be empty.
    Usage(String),
    /// The command could not do it.
    Failed(String),
}

impl Error {
    /// From anything that can be printed.
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }

    /// A wrong argument.
    pub fn usage(problem: impl fmt::Display) -> Self {
        Self::Usage(problem.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Failed(text)) = self;
        f.write_str(text)
    }
}

impl From<files::Error> for Error {
    fn from(error: files::Error) -> Self {
        Self::failed(error)
    }
}

/// `write!` into the output only fails if the output does.
impl From<fmt::Error> for Error {
    fn from(_: fmt::Error) -> Self {
        Self::Failed("the output went away".to_string())
    }
}

/// Who waits for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Whoever is at the console, or the script.
    Front,
    /// Nobody: it runs beside others.
    Back,
}

/// The words after the command's name.
pub struct Args<'a> {
    line: &'a str,
    words: Vec<&'a str>,
    ground: Ground,
}

impl<'a> Args<'a> {
    /// The arguments of a command line that was cut into these words.
    pub(super) fn new(line: &'a str, words: &'a [String], ground: Ground) -> Self {
        Self {
            line,
            words: words.iter().skip(1).map(String::as_str).collect(),
            ground,
        }
    }

    /// Who waits for the command.
    pub(super) fn ground(&self) -> Ground {
        self.ground
    }

    /// What the command can say how far it is with.
    pub(super) fn progress(&self) -> Progress {
        match self.ground {
            Ground::Front => Progress::visible(),
            Ground::Back => Progress::hidden(),
        }
    }

    /// The next word, if there is one.
    pub fn next_word(&mut self) -> Option<&'a str> {
        (!self.words.is_empty()).then(|| self.words.remove(0))
    }

    /// The next word; `name` is what the usage line calls it.
    pub fn word(&mut self, name: &str) -> Result<&'a str, Error> {
        self.next_word()
            .ok_or_else(|| Error::usage(format_args!("{name} is missing")))
    }

    /// A number (decimal, 0x, suffixes k, M and G) that the usage line calls `name`: as `name=number`, in small letters,
    /// wherever it stands, or as the next word.
    pub fn number(&mut self, name: &str) -> Result<u64, Error> {
        let given = self.number_option(&name.to_ascii_lowercase())?;
        let value = self.or_next(name, given)?;
        value.ok_or_else(|| Error::usage(format_args!("{name} is missing")))
    }

    /// The value of an option if it was given, or else the next word, if there is one: where the word was once the way to
    /// say it.
    pub fn or_next(&mut self, name: &str, given: Option<u64>) -> Result<Option<u64>, Error> {
        if given.is_some() {
            return Ok(given);
        }
        // What has a name of its own is not meant.
        let place = self.words.iter().position(|word| !word.contains('='));
        let word = place.map(|place| self.words.remove(place));
        word.map(|word| number(name, word)).transpose()
    }

    /// The value of the word `name=value`, wherever it stands.
    pub fn option(&mut self, name: &str) -> Option<&'a str> {
        let value = |word: &&'a str| word.strip_prefix(name)?.strip_prefix('=');
        let place = self.words.iter().position(|word| value(word).is_some())?;
        value(&self.words.remove(place))
    }

    /// The value of the word `name=number`, wherever it stands.
    pub fn number_option(&mut self, name: &str) -> Result<Option<u64>, Error> {
        self.option(name)
            .map(|value| number(name, value))
            .transpose()
    }

    /// Whether the word is there, wherever it stands.
    pub fn switch(&mut self, name: &str) -> bool {
        let place = self.words.iter().position(|word| *word == name);
        place.map(|place| self.words.remove(place)).is_some()
    }

    /// Everything after the command's name, as it was typed.
    pub fn text(self) -> &'a str {
        let line = self.line.trim_start();
        line.split_once(char::is_whitespace)
            .map_or("", |(_, rest)| rest.trim())
    }

    /// The rest of the words, one space between them.
    pub fn rest(self) -> String {
        self.words.join(" ")
    }

    /// Refuses words that nobody took.
    pub fn end(self) -> Result<(), Error> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Error::usage(format_args!("`{word}` is one word too many"))),
        }
    }
}

fn number(name: &str, word: &str) -> Result<u64, Error> {
    number::parse(word)
        .ok_or_else(|| Error::usage(format_args!("{name} is not a number: `{word}`")))
}

#[cfg(test)]
mod tests {
    use super::super::words;
    use super::*;

    fn with_args<R>(line: &str, test: impl FnOnce(Args<'_>) -> R) -> R {
        test(Args::new(line, &words::split(line).unwrap(), Ground::Front))
    }

    #[test]
    fn words_numbers_and_options_are_taken_in_any_order() {
        with_args("fill blk0 depth=8 16 max=64k", |mut args| {
            assert_eq!(args.number_option("max").unwrap(), Some(65536));
            assert_eq!(args.word("NAME").unwrap(), "blk0");
            assert_eq!(args.number_option("depth").unwrap(), Some(8));
            assert_eq!(args.number_option("size").unwrap(), None);
            assert_eq!(args.number("SECTOR").unwrap(), 16);
            args.end().unwrap();
        });
    }

    #[test]
    fn what_is_missing_wrong_or_left_over_is_named() {
        with_args("read blk0 x more", |mut args| {
            args.word("NAME").unwrap();
            assert_eq!(
                args.number("SECTOR").unwrap_err().to_string(),
                "SECTOR is not a number: `x`"
            );
            assert_eq!(
                args.end().unwrap_err().to_string(),
                "`more` is one word too many"
            );
        });
        with_args("read", |mut args| {
            assert_eq!(
                args.word("NAME").unwrap_err().to_string(),
                "NAME is missing"
            );
        });
    }

    #[test]
    fn a_number_has_a_place_and_a_name() {
        for line in [
            "fill blk0 8 64 7",
            "fill blk0 sector=8 count=64 seed=7",
            "fill blk0 count=64 8 7",
            "fill seed=7 blk0 8 64",
        ] {
            with_args(line, |mut args| {
                let seed = args.number_option("seed").unwrap();
                assert_eq!(args.word("NAME").unwrap(), "blk0");
                assert_eq!(args.number("SECTOR").unwrap(), 8, "{line}");
                assert_eq!(args.number("COUNT").unwrap(), 64, "{line}");
                assert_eq!(args.or_next("SEED", seed).unwrap(), Some(7), "{line}");
                args.end().unwrap();
            });
        }
        with_args("read blk0 8 count=2 3", |mut args| {
            let count = args.number_option("count").unwrap();
            args.word("NAME").unwrap();
            args.number("SECTOR").unwrap();
            assert_eq!(args.or_next("COUNT", count).unwrap(), Some(2));
            assert_eq!(
                args.end().unwrap_err().to_string(),
                "`3` is one word too many"
            );
        });
    }

    #[test]
    fn a_switch_is_there_or_not_wherever_it_stands() {
        with_args("ls music -l", |mut args| {
            assert!(args.switch("-l"));
            assert!(!args.switch("-l"));
            assert_eq!(args.next_word(), Some("music"));
            args.end().unwrap();
        });
    }

    #[test]
    fn text_is_what_was_typed() {
        with_args("echo  a  \"b\" ", |args| {
            assert_eq!(args.text(), "a  \"b\"")
        });
        with_args("echo", |args| assert_eq!(args.text(), ""));
    }
}
