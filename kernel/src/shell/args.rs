//! The arguments of a command, taken word by word, and what a command may fail with.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::apps::files;
use crate::platform::number;

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

/// The words after the command's name.
pub struct Args<'a> {
    line: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Args<'a> {
    /// The arguments of a command line that was cut into these words.
    pub(super) fn new(line: &'a str, words: &'a [String]) -> Self {
        Self {
            line,
            words: words.iter().skip(1).map(String::as_str).collect(),
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

    /// The next word as a number (decimal, 0x, suffixes k, M and G), if there is one.
    pub fn next_number(&mut self, name: &str) -> Result<Option<u64>, Error> {
        self.next_word().map(|word| number(name, word)).transpose()
    }

    /// The next word as a number.
    pub fn number(&mut self, name: &str) -> Result<u64, Error> {
        number(name, self.word(name)?)
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
        test(Args::new(line, &words::split(line).unwrap()))
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
    fn text_is_what_was_typed() {
        with_args("echo  a  \"b\" ", |args| {
            assert_eq!(args.text(), "a  \"b\"")
        });
        with_args("echo", |args| assert_eq!(args.text(), ""));
    }
}
