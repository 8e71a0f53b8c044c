//! The lines of a head, as httparse finds them.

use httparse::Header;

/// The values of all lines of that name.
pub(in crate::net) fn values<'a>(
    headers: &'a [Header<'a>],
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> {
    let of_name = move |header: &&Header<'_>| header.name.eq_ignore_ascii_case(name);
    headers
        .iter()
        .filter(of_name)
        .map(|header| header.value.trim_ascii())
}

/// The elements of a list, which may be spread over several lines (RFC 9110 5.6.1).
pub(in crate::net) fn elements<'a>(
    headers: &'a [Header<'a>],
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> {
    values(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether the list has this element.
pub(in crate::net) fn lists<'a>(headers: &'a [Header<'a>], name: &'a str, element: &str) -> bool {
    elements(headers, name).any(|listed| listed.eq_ignore_ascii_case(element.as_bytes()))
}

/// What `Content-Length` says. Lines that say the same count as one (RFC 9110 8.6).
pub(in crate::net) fn content_length(headers: &[Header<'_>]) -> Result<Option<u64>, NotALength> {
    let mut length = None;
    for value in
        values(headers, "content-length").flat_map(|value| value.split(|byte| *byte == b','))
    {
        let said = number(value.trim_ascii()).ok_or(NotALength)?;
        if length.is_some_and(|length| length != said) {
            return Err(NotALength);
        }
        length = Some(said);
    }
    Ok(length)
}

/// `Content-Length` is no number, or it is several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) struct NotALength;

/// Digits only: what Rust takes for a number may have a sign.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok()
}

/// How a body was made ready for its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Coding {
    /// As it is.
    Identity,
    /// In chunks, and nothing else.
    Chunked,
    /// In a way that is not known here, and in chunks at last.
    Unknown,
    /// In a way that does not say where it ends.
    Endless,
}

/// What `Transfer-Encoding` says.
pub(in crate::net) fn coding(headers: &[Header<'_>]) -> Coding {
    if values(headers, "transfer-encoding").next().is_none() {
        return Coding::Identity;
    }
    let (mut count, mut chunked, mut ends) = (0, 0, false);
    for coding in elements(headers, "transfer-encoding") {
        ends = coding.eq_ignore_ascii_case(b"chunked");
        chunked += usize::from(ends);
        count += 1;
    }
    match (ends, chunked, count) {
        (true, 1, 1) => Coding::Chunked,
        (true, 1, _) => Coding::Unknown,
        _ => Coding::Endless,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(lines: &str, read: impl FnOnce(&[Header<'_>]) -> T) -> T {
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let head = std::format!("{lines}\r\n");
        match httparse::parse_headers(head.as_bytes(), &mut headers) {
            Ok(httparse::Status::Complete((_, headers))) => read(headers),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lists_may_be_spread_over_lines() {
        let lines = "Connection: keep-alive,, TE\r\nHost: close\r\nCONNECTION:\tClose ,x\r\n";
        for (element, listed) in [
            ("close", true),
            ("te", true),
            ("keep-alive", true),
            ("clos", false),
            ("", false),
        ] {
            assert_eq!(
                with(lines, |headers| lists(headers, "connection", element)),
                listed,
                "{element}"
            );
        }
    }

    #[test]
    fn lengths() {
        for (value, length) in [
            ("5", Ok(Some(5))),
            (" 5 ", Ok(Some(5))),
            ("005", Ok(Some(5))),
            ("5, 5", Ok(Some(5))),
            ("18446744073709551615", Ok(Some(u64::MAX))),
            ("18446744073709551616", Err(NotALength)),
            ("5\r\nContent-Length: 5", Ok(Some(5))),
            ("5\r\nContent-Length: 6", Err(NotALength)),
            ("5, 6", Err(NotALength)),
            ("5,", Err(NotALength)),
            ("+5", Err(NotALength)),
            ("-1", Err(NotALength)),
            ("0x5", Err(NotALength)),
            ("5 5", Err(NotALength)),
            ("", Err(NotALength)),
        ] {
            let lines = std::format!("content-length: {value}\r\n");
            assert_eq!(with(&lines, content_length), length, "{value:?}");
        }
        assert_eq!(with("X: 5\r\n", content_length), Ok(None));
    }

    #[test]
    fn codings() {
        for (value, expected) in [
            ("chunked", Coding::Chunked),
            ("Chunked", Coding::Chunked),
            ("gzip, chunked", Coding::Unknown),
            ("gzip\r\nTransfer-Encoding: chunked", Coding::Unknown),
            ("chunked, gzip", Coding::Endless),
            ("chunked, chunked", Coding::Endless),
            ("identity", Coding::Endless),
            ("xchunked", Coding::Endless),
            ("", Coding::Endless),
        ] {
            let lines = std::format!("Transfer-Encoding: {value}\r\n");
            assert_eq!(with(&lines, coding), expected, "{value:?}");
        }
        assert_eq!(with("X: chunked\r\n", coding), Coding::Identity);
    }
}
