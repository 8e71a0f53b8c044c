//! Numbers as people write them, on the command line and in the shell.

/// A number: decimal or `0x` hexadecimal, with a binary suffix k, M or G.
pub fn parse(text: &str) -> Option<u64> {
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
    fn numbers_take_suffixes_and_refuse_what_does_not_fit() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("64k"), Some(65536));
        assert_eq!(parse("2M"), Some(2 << 20));
        assert_eq!(parse("3G"), Some(3 << 30));
        assert_eq!(parse("0xff"), Some(255));
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
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
