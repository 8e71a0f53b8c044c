//! Command lines cut into commands and words.

use alloc::string::String;
use alloc::vec::Vec;

/// The commands of a script: separated by newlines or by `;` outside quotes; empty ones and `#` comments left out.
pub fn commands(script: &str) -> impl Iterator<Item = &str> {
    script
        .lines()
        .flat_map(split_at_semicolons)
        .map(str::trim)
        .filter(|command| !command.is_empty() && !command.starts_with('#'))
}

fn split_at_semicolons(line: &str) -> impl Iterator<Item = &str> {
    let mut quote = None;
    line.split(move |character| match (quote, character) {
        (None, ';') => true,
        (None, '"' | '\'') => {
            quote = Some(character);
            false
        }
        (Some(open), close) if open == close => {
            quote = None;
            false
        }
        _ => false,
    })
}

/// The words of a command. `"` and `'` hold words with spaces together.
pub fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            (_, character) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

/// The last command of a line that is not finished.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Its words but the last.
    pub(super) words: Vec<String>,
    /// The last word, without quotes; empty after a blank.
    pub(super) last: String,
    /// How many characters of the line the last word takes, quotes and all.
    pub(super) typed: usize,
}

/// What a line says so far.
pub(super) fn unfinished(line: &str) -> Unfinished {
    let command = split_at_semicolons(line).last().unwrap_or_default();
    let mut words = Vec::new();
    let mut last: Option<String> = None;
    let (mut typed, mut quote) = (0, None);
    for character in command.chars() {
        typed += 1;
        match (quote, character) {
            (None, '"' | '\'') => {
                quote = Some(character);
                last.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None, space) if space.is_whitespace() => {
                words.extend(last.take());
                typed = 0;
            }
            (_, character) => last.get_or_insert_default().push(character),
        }
    }
    Unfinished {
        words,
        last: last.unwrap_or_default(),
        typed,
    }
}

/// A word as it is typed; one that goes on may have a quote that is not closed yet.
pub(super) fn quote(word: &str, goes_on: bool) -> String {
    let needs = |it: char| it.is_whitespace() || matches!(it, '"' | '\'' | ';');
    let plain = !word.contains(needs) && !word.starts_with('#');
    if plain {
        return word.into();
    }
    // What holds the one quote is put between the other.
    let (quote, other) = match word.contains('"') {
        true => ('\'', '"'),
        false => ('"', '\''),
    };
    let mut quoted = String::from(quote);
    for character in word.chars() {
        match character == quote {
            true => quoted.extend([quote, other, character, other, quote]),
            false => quoted.push(character),
        }
    }
    if !goes_on {
        quoted.push(quote);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_script_is_cut_at_lines_and_semicolons_outside_quotes() {
        let script = "strict\r\n  echo a ; echo 'b; c'\n\n# a comment\necho \"d;\" ;;poweroff";
        let found: Vec<_> = commands(script).collect();
        assert_eq!(
            found,
            ["strict", "echo a", "echo 'b; c'", "echo \"d;\"", "poweroff"]
        );
    }

    #[test]
    fn quotes_hold_words_together() {
        let words = split(r#"  write  blk0 "two words" 'a "b"' x'y'z '' "#).unwrap();
        assert_eq!(words, ["write", "blk0", "two words", "a \"b\"", "xyz", ""]);
        assert!(split("echo 'open").is_err());
        assert!(split("   ").unwrap().is_empty());
    }
    #[test]
    fn an_unfinished_line_has_a_last_word() {
        let last = |line: &str| {
            let Unfinished { words, last, typed } = unfinished(line);
            (words.join(","), last, typed)
        };
        let found = |words: &str, last: &str, typed| (words.to_string(), last.to_string(), typed);
        assert_eq!(last(""), found("", "", 0));
        assert_eq!(last("bl"), found("", "bl", 2));
        assert_eq!(last("blk "), found("blk", "", 0));
        assert_eq!(last("echo 'a;b'; cat \"two wö"), found("cat", "two wö", 7));
        assert_eq!(last("cat 'a b'\"c"), found("cat", "a bc", 7));
    }

    #[test]
    fn what_is_quoted_is_one_word_again() {
        for word in [
            "plain",
            "two words",
            "it's",
            "a \"b\" 'c'",
            "x;y",
            "#x",
            "ä b",
            "",
        ] {
            let typed = quote(word, false);
            let expected: &[&str] = if word.is_empty() { &[] } else { &[word] };
            assert_eq!(split(&typed).unwrap(), expected, "{typed}");
            let unfinished = unfinished(&quote(word, true));
            assert_eq!(unfinished.last, word);
        }
        assert_eq!(quote("two words", true), "\"two words");
    }
}
