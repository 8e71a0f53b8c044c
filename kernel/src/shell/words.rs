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

#[cfg(test)]
mod tests {
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
}
