//! Numbers as people write them, on the command line and in the shell.

use core::time::Duration;

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

/// Milliseconds, with up to three digits behind a point: `20`, `2.5`.
pub fn milliseconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !(1..=3).contains(&fraction.len()) || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(1000)?;
    let micros = fraction.parse::<u64>().ok()? * [100, 10, 1].get(fraction.len() - 1)?;
    whole.checked_add(micros).map(Duration::from_micros)
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

    #[test]
    fn milliseconds_have_three_digits_behind_the_point_at_most() {
        let micros = |text| milliseconds(text).map(|it| it.as_micros());
        assert_eq!(micros("20"), Some(20_000));
        assert_eq!(micros("2.5"), Some(2500));
        assert_eq!(micros("2.05"), Some(2050));
        assert_eq!(micros("0.001"), Some(1));
        for wrong in [
            "",
            ".",
            ".5",
            "2.",
            "2.0001",
            "2.5.1",
            "-1",
            "+1",
            "2.-1",
            "1k",
            "99999999999999999",
        ] {
            assert_eq!(micros(wrong), None, "{wrong}");
        }
    }
}
