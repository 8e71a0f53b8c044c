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

/// A number: decimal or `0x` hexadecimal, with a binary suffix k, M or G.
pub fn number(text: &str) -> Option<u64> {
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        // `from_str_radix` would take a sign.
        let digits = hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(hexadecimal, 16).ok().filter(|_| digits);
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
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

    #[test]
    fn numbers_take_suffixes_and_refuse_what_does_not_fit() {
        assert_eq!(number("4096"), Some(4096));
        assert_eq!(number("64k"), Some(65536));
        assert_eq!(number("2M"), Some(2 << 20));
        assert_eq!(number("3G"), Some(3 << 30));
        assert_eq!(number("0xff"), Some(255));
        for wrong in [
            "",
            "k",
            "-1",
            "+1",
            "1kk",
            "0x",
            "0x+1",
            "99999999999999999999",
            "99999999999999999G",
            "1é",
        ] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
