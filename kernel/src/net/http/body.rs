//! How long a message's body is, and where it is in what comes (RFC 9112 6 and 7).

use core::fmt;

use httparse::Status;

use super::MAX_LINES;

/// A line with a chunk's size that is longer, by its extensions, is refused.
const MAX_CHUNK_LINE_BYTES: usize = 4 * 1024;
/// More trailers are refused.
const MAX_TRAILERS_BYTES: usize = 8 * 1024;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunks(Chunk),
    /// All until the connection ends.
    UntilClose,
}

/// What of a chunk comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Chunk {
    /// The line with its size.
    Size,
    /// So many bytes.
    Data(u64),
    /// The end of the line that its bytes are.
    End,
    /// Lines behind the last one.
    Trailers,
}

/// What to do with the bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Next {
    /// So many belong to the body.
    Data(usize),
    /// So many only say where the body is.
    Skip(usize),
    /// There must be more of them.
    More,
    /// The body is whole.
    End,
}

/// Why nobody knows where a body in chunks goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum BodyError {
    Size,
    LongSize,
    End,
    Trailers,
    LongTrailers,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size => write!(f, "a chunk's size is no number"),
            Self::LongSize => write!(
                f,
                "the line of a chunk's size has more than {MAX_CHUNK_LINE_BYTES} bytes"
            ),
            Self::End => write!(f, "a chunk has more bytes than its size"),
            Self::Trailers => write!(f, "a trailer is not a header line"),
            Self::LongTrailers => write!(
                f,
                "the trailers have more than {MAX_LINES} lines or {MAX_TRAILERS_BYTES} bytes"
            ),
        }
    }
}

impl Body {
    pub(in crate::net) const NONE: Self = Self::Length(0);
    pub(in crate::net) const CHUNKED: Self = Self::Chunks(Chunk::Size);

    /// What comes next in `received`. Whatever is data or to be skipped counts as used from then on.
    pub(in crate::net) fn next(&mut self, received: &[u8]) -> Result<Next, BodyError> {
        Ok(match self {
            Self::Length(0) => Next::End,
            Self::Length(left) => data(left, received),
            Self::UntilClose if received.is_empty() => Next::More,
            Self::UntilClose => Next::Data(received.len()),
            Self::Chunks(chunk) => match chunk {
                Chunk::Size => match size(received)? {
                    Some((line, size)) => {
                        *chunk = if size > 0 {
                            Chunk::Data(size)
                        } else {
                            Chunk::Trailers
                        };
                        Next::Skip(line)
                    }
                    None => Next::More,
                },
                Chunk::Data(left) => {
                    let next = data(left, received);
                    if *left == 0 {
                        *chunk = Chunk::End;
                    }
                    next
                }
                Chunk::End => match received {
                    [] | [b'\r'] => Next::More,
                    [b'\r', b'\n', ..] => {
                        *chunk = Chunk::Size;
                        Next::Skip(2)
                    }
                    _ => return Err(BodyError::End),
                },
                Chunk::Trailers => match trailers(received)? {
                    Some(length) => {
                        *self = Self::NONE;
                        Next::Skip(length)
                    }
                    None => Next::More,
                },
            },
        })
    }
}

fn data(left: &mut u64, received: &[u8]) -> Next {
    let there = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(received.len());
    *left -= there as u64;
    match there {
        0 => Next::More,
        _ => Next::Data(there),
    }
}

/// The length of the line with a chunk's size, and the size.
fn size(received: &[u8]) -> Result<Option<(usize, u64)>, BodyError> {
    // httparse takes a line without digits for a size of 0, and a line feed in an extension for a part of it; others
    // would take that for the line's end.
    let Some(line) = received.split_inclusive(|byte| *byte == b'\n').next() else {
        return Ok(None);
    };
    if !line.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(BodyError::Size);
    }
    match httparse::parse_chunk_size(line) {
        _ if line.len() > MAX_CHUNK_LINE_BYTES => Err(BodyError::LongSize),
        Ok(Status::Complete(found)) => Ok(Some(found)),
        Ok(Status::Partial) if !line.ends_with(b"\n") => Ok(None),
        _ => Err(BodyError::Size),
    }
}

/// The length of the trailers, with the empty line that ends them.
fn trailers(received: &[u8]) -> Result<Option<usize>, BodyError> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    match httparse::parse_headers(received, &mut lines) {
        Ok(Status::Complete((length, _))) if length <= MAX_TRAILERS_BYTES => Ok(Some(length)),
        Ok(Status::Partial) if received.len() <= MAX_TRAILERS_BYTES => Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Err(BodyError::LongTrailers),
        Err(_) => Err(BodyError::Trailers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    /// Reads a body that comes in pieces of this length; what of it is data, and what is left behind it.
    fn read(
        mut body: Body,
        bytes: &str,
        piece: usize,
    ) -> Result<Option<(String, String)>, BodyError> {
        let (mut used, mut there, mut data) = (0, 0, Vec::new());
        loop {
            match body.next(&bytes.as_bytes()[used..there])? {
                Next::Data(count) => {
                    data.extend_from_slice(&bytes.as_bytes()[used..used + count]);
                    used += count;
                }
                Next::Skip(count) => used += count,
                Next::More if there == bytes.len() => return Ok(None),
                Next::More => there = bytes.len().min(there + piece),
                Next::End => {
                    let data = String::from_utf8(data).unwrap();
                    return Ok(Some((data, bytes[used..].into())));
                }
            }
        }
    }

    fn check(body: Body, bytes: &str, expected: Result<Option<(&str, &str)>, BodyError>) {
        for piece in [1, 2, 3, 5, 1000] {
            let found = read(body, bytes, piece);
            let found = found
                .as_ref()
                .map(|whole| whole.as_ref().map(|(data, rest)| (&data[..], &rest[..])))
                .map_err(|error| *error);
            // What is behind the body may not be there yet.
            match (found, expected) {
                (Ok(Some((data, _))), Ok(Some((whole, _)))) if piece < 1000 => {
                    assert_eq!(data, whole, "{bytes:?} by {piece}");
                }
                _ => assert_eq!(found, expected, "{bytes:?} by {piece}"),
            }
        }
    }

    #[test]
    fn a_body_ends_at_its_length() {
        check(Body::NONE, "GET", Ok(Some(("", "GET"))));
        check(Body::Length(5), "helloGET", Ok(Some(("hello", "GET"))));
        check(Body::Length(5), "hell", Ok(None));
        check(Body::UntilClose, "hello", Ok(None));
    }

    #[test]
    fn a_body_ends_behind_its_last_chunk() {
        let chunked = |bytes, expected| check(Body::CHUNKED, bytes, expected);
        chunked("5\r\nhello\r\n0\r\n\r\nGET", Ok(Some(("hello", "GET"))));
        chunked("0\r\n\r\n", Ok(Some(("", ""))));
        chunked(
            "3;a=b;c=\"d\"\r\nhel\r\n0002 \r\nlo\r\n000;x\r\n\r\n",
            Ok(Some(("hello", ""))),
        );
        chunked(
            "A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nX: y\r\n\r\nz",
            Ok(Some(("0123456789", "z"))),
        );
        chunked("5\r\nhello\r\n0\r\n", Ok(None));
        chunked("5\r\nhello\r\n", Ok(None));
        chunked("5\r\nhel", Ok(None));
    }

    #[test]
    fn chunks_that_could_be_read_in_two_ways_are_refused() {
        let refused = |bytes, error| check(Body::CHUNKED, bytes, Err(error));
        for size in [
            "\r\n",
            " 5\r\n",
            "+5\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\n",
            "5;\nx\r\n",
            "5 5\r\n",
            "g\r\n",
        ] {
            refused(size, BodyError::Size);
        }
        refused("11112222333344445\r\n", BodyError::Size);
        refused("5\r\nhello0\r\n\r\n", BodyError::End);
        refused("5\r\nhello\n0\r\n\r\n", BodyError::End);
        refused("0\r\nno colon\r\n\r\n", BodyError::Trailers);
        // As much as a chunk may say of itself, and more: without an end, or all at once.
        let long = "x".repeat(MAX_CHUNK_LINE_BYTES);
        check(
            Body::CHUNKED,
            &std::format!("5;{}\r\nhello\r\n0\r\n\r\n", &long[4..]),
            Ok(Some(("hello", ""))),
        );
        for end in ["", "\r\n"] {
            let bytes = std::format!("5;{long}{end}");
            assert_eq!(read(Body::CHUNKED, &bytes, 1000), Err(BodyError::LongSize));
        }
        let trailer = std::format!("X: {}\r\n", "y".repeat(1000));
        for (count, end) in [(20, ""), (20, "\r\n"), (MAX_LINES + 1, "\r\n")] {
            let line = if count == 20 {
                &trailer[..]
            } else {
                "X: y\r\n"
            };
            let bytes = std::format!("0\r\n{}{end}", line.repeat(count));
            assert_eq!(
                read(Body::CHUNKED, &bytes, 1000),
                Err(BodyError::LongTrailers)
            );
        }
    }
}
