//! What Tab makes of an unfinished line.
//!
//! What may come next is taken from the usage lines that `help` shows, so that a new command has completion without doing
//! anything for it: words in small letters are themselves, `[NAME=...]` is an option, and of the words in capitals `NAME` is
//! a device, and `FILE`, `PATH`, `DIRECTORY`, `FROM` and `TO` are places among the files.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use unicode_width::UnicodeWidthStr;

use super::commands::bench;
use super::words::{self, Unfinished};
use super::{Command, all, find};
use crate::apps::files::path::Shown;
use crate::apps::files::{self, Kind};
use crate::devices;

/// More choices than these are not looked for, nor shown.
const MAX_CHOICES: usize = 200;

/// How the line goes on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Completion {
    /// So many characters before the cursor give way to the text.
    pub(super) replaced: usize,
    /// As far as there is no doubt. `None` if that is what was typed.
    pub(super) text: Option<String>,
    /// What there is to choose from.
    pub(super) choices: Vec<String>,
    /// There is more.
    pub(super) more: bool,
}

/// A word that may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    /// All of it.
    word: String,
    /// What of it is shown among others.
    shown: String,
    /// Nothing more belongs to it.
    is_whole: bool,
}

impl Choice {
    fn word(word: impl Into<String>) -> Self {
        let word = word.into();
        Self {
            shown: word.clone(),
            word,
            is_whole: true,
        }
    }
}

/// Completes what is before the cursor. Reads directories, if need be.
pub(super) async fn complete(before: &str) -> Completion {
    let unfinished = words::unfinished(before);
    let mut choices = Vec::new();
    let mut more = false;
    for wanted in wanted(&unfinished) {
        let mut found = match wanted {
            Wanted::Word(word) => Vec::from([Choice::word(word)]),
            Wanted::Command => all().map(|it| Choice::word(it.name)).collect(),
            Wanted::Option(name) => Vec::from([Choice {
                is_whole: false,
                ..Choice::word(format!("{name}="))
            }]),
            Wanted::Device { class, option } => devices(class, option),
            Wanted::Place { directory } => {
                let (found, cut) = places(&unfinished.last, directory).await;
                more |= cut;
                found
            }
        };
        found.retain(|it| it.word.starts_with(&unfinished.last));
        choices.append(&mut found);
    }
    join(&unfinished, choices, more)
}

/// The choices in as many columns as there is room for, at least one.
pub(super) fn table(choices: &[String], columns: usize) -> String {
    let width = choices.iter().map(|it| it.width()).max().unwrap_or(0) + 2;
    let across = ((columns + 1) / width).max(1);
    let mut table = String::new();
    for row in choices.chunks(across) {
        for choice in row {
            table += choice;
            let padding = width - choice.width();
            table.extend(core::iter::repeat_n(' ', padding));
        }
        table.truncate(table.trim_end().len());
        table.push('\n');
    }
    table
}

/// What the choices have in common, and what of them is to be shown.
fn join(unfinished: &Unfinished, mut choices: Vec<Choice>, more: bool) -> Completion {
    choices.sort_unstable_by(|a, b| a.word.cmp(&b.word));
    choices.dedup_by(|a, b| a.word == b.word);
    let Some(first) = choices.first() else {
        return Completion::default();
    };
    let mut common = first.word.as_str();
    for choice in &choices {
        let pairs = common.char_indices().zip(choice.word.chars());
        let same = pairs.take_while(|((_, a), b)| a == b);
        let len = same.map(|((_, it), _)| it.len_utf8()).sum();
        common = common.get(..len).unwrap_or_default();
    }
    if let [only] = choices.as_slice()
        && !more
    {
        let mut text = words::quote(&only.word, !only.is_whole);
        if only.is_whole {
            text.push(' ');
        }
        return Completion {
            replaced: unfinished.typed,
            text: Some(text),
            ..Completion::default()
        };
    }
    // What is not listed may differ from the rest sooner.
    let adds = common.len() > unfinished.last.len() && !more;
    Completion {
        replaced: unfinished.typed,
        text: adds.then(|| words::quote(common, true)),
        more: more || choices.len() > MAX_CHOICES,
        choices: choices
            .into_iter()
            .take(MAX_CHOICES)
            .map(|it| it.shown)
            .collect(),
    }
}

/// What the next word may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Word(&'static str),
    Command,
    Option(&'static str),
    /// A device whose name begins so; as the value of an option, or by itself.
    Device {
        class: &'static str,
        option: Option<&'static str>,
    },
    Place {
        /// Files are not meant.
        directory: bool,
    },
}

/// What may be meant by the last word, as the words before it are.
fn wanted(unfinished: &Unfinished) -> Vec<Wanted> {
    let mut words = unfinished.words.as_slice();
    // The command in it begins anew.
    while let [first, rest @ ..] = words
        && first == "bg"
    {
        words = rest;
    }
    let mut spelled_out = Vec::new();
    if let [first, kind, rest @ ..] = words
        && first == "bench"
        && let Some(command) = bench::command(kind)
    {
        spelled_out.extend([command.into(), first.clone()]);
        spelled_out.extend_from_slice(rest);
        words = &spelled_out;
    }
    let [name, words @ ..] = words else {
        return Vec::from([Wanted::Command]);
    };
    let Some(command) = find(name) else {
        return Vec::new();
    };
    let forms = command.usage.iter();
    forms
        .flat_map(|form| next(command, form, words, &unfinished.last))
        .collect()
}

/// What comes next in one form of a command, if the words before fit it.
fn next(
    command: &Command,
    form: &'static str,
    words: &[String],
    last: &str,
) -> impl Iterator<Item = Wanted> {
    let mut tokens = form.split_whitespace().skip(1).scan(0, |depth, text| {
        *depth += text.matches('[').count();
        let optional = *depth > 0;
        *depth -= text.matches(']').count().min(*depth);
        Some(Token {
            text: text.trim_start_matches('[').trim_end_matches(']'),
            optional,
        })
    });
    let tokens: Vec<_> = tokens.by_ref().collect();
    let (options, places): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|it| it.is_option());
    let is_given = |token: &&Token| !words.iter().any(|word| token.takes_option(word));
    let options: Vec<_> = options.iter().filter(is_given).copied().collect();

    let mut places = places.into_iter().peekable();
    let mut fits = true;
    for word in words.iter().filter(|word| !is_option(word)) {
        // What may be left out was, if it is another word.
        while places
            .next_if(|it| it.optional && !it.takes(word))
            .is_some()
        {}
        fits &= places.next().is_some_and(|it| it.takes(word));
    }
    let mut wanted = Vec::new();
    if fits {
        for token in places {
            token.places(command, &mut wanted);
            if !token.optional {
                break;
            }
        }
        for token in options {
            token.option(command, last, &mut wanted);
        }
    }
    wanted.into_iter()
}

/// A word of a usage line.
#[derive(Clone, Copy, Debug)]
struct Token {
    text: &'static str,
    optional: bool,
}

impl Token {
    fn is_option(&self) -> bool {
        is_option(self.text)
    }

    fn option_name(&self) -> Option<&'static str> {
        self.text.split_once('=').map(|(name, _)| name)
    }

    fn takes_option(&self, word: &str) -> bool {
        let name = word.split_once('=').map(|(name, _)| name);
        name.is_some() && name == self.option_name()
    }

    /// It stands for something, and is not itself what is typed.
    fn stands_for(&self) -> bool {
        self.text.contains(|it: char| it.is_ascii_uppercase())
    }

    fn takes(&self, word: &str) -> bool {
        self.stands_for() || self.text.split('|').any(|it| it == word)
    }

    fn places(&self, command: &Command, wanted: &mut Vec<Wanted>) {
        if !self.stands_for() {
            wanted.extend(self.text.split('|').map(Wanted::Word));
            return;
        }
        let what = self.text.split('.').next().unwrap_or_default();
        wanted.extend(match what {
            "NAME" => Some(Wanted::Device {
                class: class(command),
                option: None,
            }),
            "FILE" | "PATH" | "FROM" | "TO" => Some(Wanted::Place { directory: false }),
            "DIRECTORY" => Some(Wanted::Place { directory: true }),
            "COMMAND" => Some(Wanted::Command),
            _ => None,
        });
    }

    fn option(&self, command: &Command, last: &str, wanted: &mut Vec<Wanted>) {
        let Some((name, value)) = self.text.split_once('=') else {
            return;
        };
        match (self.takes_option(last), value) {
            (true, "NAME") => wanted.push(Wanted::Device {
                class: class(command),
                option: Some(name),
            }),
            (true, _) => {}
            (false, _) => wanted.push(Wanted::Option(name)),
        }
    }
}

fn is_option(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|it| it.is_ascii_lowercase())
}

/// What the names of the devices begin with that a command is about.
fn class(command: &Command) -> &'static str {
    match command.name {
        "sound" => "snd",
        "virtio" => "",
        name => name,
    }
}

fn devices(class: &str, option: Option<&str>) -> Vec<Choice> {
    let names = devices::all().into_iter().map(|it| it.name.to_string());
    let names = names.filter(|name| name.starts_with(class));
    names
        .map(|name| match option {
            Some(option) => Choice::word(format!("{option}={name}")),
            None => Choice::word(name),
        })
        .collect()
}

/// What begins as the word does, in the directory that it names. Says whether there is more.
async fn places(word: &str, directory: bool) -> (Vec<Choice>, bool) {
    let (before, start) = match word.rfind('/') {
        Some(slash) => word.split_at(slash + 1),
        None => ("", word),
    };
    let place = files::locate(before).await;
    // A directory that is not there, or can't be read, has nothing to choose from.
    let Ok(found) = files::begin_with(&place, start, MAX_CHOICES).await else {
        return (Vec::new(), false);
    };
    let entries = found.entries.into_iter();
    // What can't be typed is no choice.
    let entries = entries.filter(|it| !it.name.contains(char::is_control));
    let entries = entries.filter(|it| !directory || it.kind != Kind::File);
    let choices = entries.map(|entry| {
        let slash = if entry.kind == Kind::Directory {
            "/"
        } else {
            ""
        };
        Choice {
            word: format!("{before}{}{slash}", entry.name),
            shown: format!("{}{slash}", Shown(&entry.name)),
            is_whole: entry.kind == Kind::File,
        }
    });
    (choices.collect(), found.more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str) -> Vec<Wanted> {
        let mut wanted = wanted(&words::unfinished(line));
        wanted.dedup();
        wanted
    }

    const FILE: Wanted = Wanted::Place { directory: false };

    fn device(class: &'static str) -> Wanted {
        Wanted::Device {
            class,
            option: None,
        }
    }

    #[test]
    fn what_comes_next_is_what_the_usage_says() {
        use Wanted::{Command, Option, Word};
        assert_eq!(after(""), [Command]);
        assert_eq!(after("b"), [Command]);
        assert_eq!(after("strict; b"), [Command]);
        assert_eq!(after("cat "), [FILE]);
        assert_eq!(after("cat one "), []);
        assert_eq!(after("cp one "), [FILE]);
        assert_eq!(after("cd "), [Wanted::Place { directory: true }]);
        assert_eq!(after("nothing "), []);
        assert!(after("blk ").contains(&Word("hash")));
        assert_eq!(after("blk id "), [device("blk")]);
        assert_eq!(after("virtio "), [device("")]);
        // A form that what was typed does not fit has nothing to say.
        assert_eq!(after("blk id blk0 "), []);
        assert_eq!(after("blk wce blk0 "), [Word("on"), Word("off")]);
        // What may be left out, and what comes after it.
        assert_eq!(
            after("blk bench blk0 "),
            [
                Word("latencies"),
                Option("rw"),
                Option("bs"),
                Option("iodepth"),
                Option("count"),
                Option("fsync"),
            ]
        );
        // An option that was given is not given again, wherever it stands.
        assert_eq!(
            after("blk bench count=7 blk0 rw=randread iodepth=1 "),
            [Word("latencies"), Option("bs"), Option("fsync")]
        );
        // The same by another name.
        assert!(after("bench ").contains(&Word("gpu")));
        assert!(after("bench blk ").contains(&device("blk")));
        assert_eq!(
            after("bg bench gpu count=7 "),
            [Option("area"), Option("display")]
        );
        assert!(after("ls ").contains(&FILE) && after("ls -l ").contains(&FILE));
        // The value of an option.
        let card = Wanted::Device {
            class: "snd",
            option: Some("card"),
        };
        assert!(after("sound play a.wav card=").contains(&card));
        // A command in a command.
        assert_eq!(after("bg "), [Command]);
        assert_eq!(after("bg blk id "), [device("blk")]);
    }

    #[test]
    fn every_usage_line_can_be_read() {
        for command in all() {
            for form in command.usage {
                let words: Vec<_> = form.split_whitespace().collect();
                assert_eq!(words.first(), Some(&command.name));
                let depth = form.matches('[').count();
                assert_eq!(depth, form.matches(']').count(), "{form}");
                let _ = next(command, form, &[], "");
            }
        }
    }

    fn completed(line: &str, words: &[&str]) -> Completion {
        let choices = words.iter().map(|word| Choice::word(*word));
        join(&words::unfinished(line), choices.collect(), false)
    }

    #[test]
    fn a_word_goes_on_as_far_as_there_is_no_doubt() {
        let text = |it: Completion| (it.replaced, it.text.unwrap_or_default(), it.choices.len());
        assert_eq!(text(completed("ca", &["cat"])), (2, "cat ".into(), 0));
        assert_eq!(
            text(completed("b", &["blk0", "blk1"])),
            (1, "blk".into(), 2)
        );
        assert_eq!(text(completed("blk", &["blk0", "blk1"])), (3, "".into(), 2));
        assert_eq!(text(completed("x", &[])), (0, "".into(), 0));
        // Two letters that begin with the same byte.
        assert_eq!(text(completed("a", &["aä", "aö"])), (1, "".into(), 2));
        // The same word from two forms of a command.
        assert_eq!(text(completed("o", &["on", "on"])), (1, "on ".into(), 0));
        // Blanks need quotes, which stay open as long as the word goes on.
        assert_eq!(
            text(completed("cat two", &["two words.txt"])),
            (3, "\"two words.txt\" ".into(), 0)
        );
        assert_eq!(
            text(completed("cat \"two w", &["two words", "two wolves"])),
            (6, "\"two wo".into(), 2)
        );
    }

    #[test]
    fn many_choices_are_cut_and_said_to_be() {
        let words: Vec<_> = (0..1000).map(|it| format!("file{it:03}")).collect();
        let choices = words
            .iter()
            .map(|word| Choice::word(word.as_str()))
            .collect();
        let completion = join(&words::unfinished("file"), choices, false);
        assert_eq!(completion.choices.len(), MAX_CHOICES);
        assert!(completion.more && completion.text.is_none());
        // What was not looked at may differ anywhere.
        let choices = Vec::from([Choice::word("file1"), Choice::word("file12")]);
        assert_eq!(join(&words::unfinished("f"), choices, true).text, None);
    }

    #[test]
    fn choices_stand_in_columns() {
        let choices = ["a", "bb", "漢字", "dddd"].map(String::from);
        assert_eq!(table(&choices, 20), "a     bb    漢字\ndddd\n");
        assert_eq!(table(&choices, 3), "a\nbb\n漢字\ndddd\n");
        assert_eq!(table(&[], 80), "");
    }
}
