//! The head of a request: read by httparse, then checked for what RFC 9112 leaves to the server.

use alloc::vec::Vec;

use httparse::{Header, Status as Found};

use super::MAX_LINES;
use super::body::Body;
use super::fields::{Coding, coding, content_length, elements, lists, values};

/// A longer head is refused; the request's line counts.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;
/// A request whose own line is longer is refused.
const MAX_REQUEST_LINE_BYTES: usize = 8 * 1024;

/// How it went: the code, and its name for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(pub(super) u16, pub(super) &'static str);

pub(super) const BAD_REQUEST: Status = Status(400, "Bad Request");
pub(super) const TIMEOUT: Status = Status(408, "Request Timeout");
const URI_TOO_LONG: Status = Status(414, "URI Too Long");
const EXPECTATION_FAILED: Status = Status(417, "Expectation Failed");
const HEAD_TOO_LARGE: Status = Status(431, "Request Header Fields Too Large");
pub(super) const NOT_IMPLEMENTED: Status = Status(501, "Not Implemented");
const VERSION_NOT_SUPPORTED: Status = Status(505, "HTTP Version Not Supported");

/// Why there is no request in what came. Nobody knows where the next one begins: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: Status,
    pub(super) why: &'static str,
}

impl Refusal {
    pub(super) const fn new(status: Status, why: &'static str) -> Self {
        Self { status, why }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Options,
    /// One that HTTP has, but none of our resources.
    Other,
    Unknown,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Decoded and without the query; `*` is the whole server.
    pub(super) path: Vec<u8>,
    pub(super) body: Body,
    /// The client waits for a word before it sends the body.
    pub(super) expects_continue: bool,
    /// The client may ask for more over the same connection.
    pub(super) keep_alive: bool,
}

/// The request at the beginning of what was received, and the length of its head; `None` if more must come.
pub(super) fn parse(received: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut head = httparse::Request::new(&mut lines);
    let parsed = head.parse(received);
    if let Err(error) = parsed {
        return Err(refusal(error, received));
    }
    if request_line(received).len() > MAX_REQUEST_LINE_BYTES {
        let why = "the request's line is longer than 8 KiB";
        return Err(Refusal::new(URI_TOO_LONG, why));
    }
    let length = match parsed {
        Ok(Found::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(Found::Partial) if received.len() <= MAX_HEAD_BYTES => return Ok(None),
        _ => {
            let why = "the request's head is longer than 32 KiB";
            return Err(Refusal::new(HEAD_TOO_LARGE, why));
        }
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Err(bad("this is no request"));
    };
    let request = check(method, target, minor == 1, head.headers)?;
    Ok(Some((request, length)))
}

const fn bad(why: &'static str) -> Refusal {
    Refusal::new(BAD_REQUEST, why)
}

/// The first line. There may be empty ones before it (RFC 9112 2.2).
fn request_line(received: &[u8]) -> &[u8] {
    let end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let mut lines = received.split(end).filter(|line| !line.is_empty());
    lines.next().unwrap_or_default()
}

fn refusal(error: httparse::Error, received: &[u8]) -> Refusal {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => {
            Refusal::new(HEAD_TOO_LARGE, "the request has more than 256 header lines")
        }
        Error::Version if names_a_version(request_line(received)) => {
            Refusal::new(VERSION_NOT_SUPPORTED, "HTTP/1.0 or HTTP/1.1")
        }
        Error::HeaderName | Error::HeaderValue => bad("a header line is malformed"),
        _ => bad("this is no request of HTTP/1.0 or HTTP/1.1"),
    }
}

/// Whether the line ends in a version of HTTP, whichever.
fn names_a_version(line: &[u8]) -> bool {
    let word = line.rsplit(|byte| *byte == b' ').next();
    match word.and_then(|word| word.strip_prefix(b"HTTP/")) {
        Some([major, b'.', minor]) => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}

fn check(
    method: &str,
    target: &str,
    is_1_1: bool,
    headers: &[Header<'_>],
) -> Result<Request, Refusal> {
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "OPTIONS" => Method::Options,
        "POST" | "PUT" | "DELETE" | "PATCH" | "TRACE" | "CONNECT" => Method::Other,
        _ => Method::Unknown,
    };
    check_host(is_1_1, headers)?;
    let body = body(is_1_1, headers)?;
    let mut expectations = elements(headers, "expect").peekable();
    let expects_continue = is_1_1 && expectations.peek().is_some();
    if is_1_1 && !expectations.all(|element| element.eq_ignore_ascii_case(b"100-continue")) {
        let why = "nothing can be expected but 100-continue";
        return Err(Refusal::new(EXPECTATION_FAILED, why));
    }
    let keep_alive = match is_1_1 {
        true => !lists(headers, "connection", "close"),
        false => lists(headers, "connection", "keep-alive"),
    };
    Ok(Request {
        method,
        path: path(method, target).ok_or(bad("the request's target is malformed"))?,
        body,
        expects_continue,
        keep_alive,
    })
}

/// RFC 9112 3.2: a request of HTTP/1.1 has one `Host`, and none has two.
fn check_host(is_1_1: bool, headers: &[Header<'_>]) -> Result<(), Refusal> {
    let mut hosts = values(headers, "host");
    let host = hosts.next();
    if host.is_none() && is_1_1 || hosts.next().is_some() {
        return Err(bad("a request of HTTP/1.1 has one Host"));
    }
    let authority =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte);
    match host.is_none_or(|host| host.iter().all(authority)) {
        true => Ok(()),
        false => Err(bad("Host is no host")),
    }
}

/// RFC 9112 6.3. Whatever two servers could read in two ways is refused.
fn body(is_1_1: bool, headers: &[Header<'_>]) -> Result<Body, Refusal> {
    let lengths = values(headers, "content-length").count();
    match coding(headers) {
        Coding::Identity if lengths == 0 => Ok(Body::NONE),
        Coding::Identity if lengths == 1 => match content_length(headers) {
            Ok(length) => Ok(Body::Length(length.unwrap_or(0))),
            Err(_) => Err(bad("Content-Length is no number")),
        },
        Coding::Identity => Err(bad("there are two lines of Content-Length")),
        _ if lengths > 0 => Err(bad("both Content-Length and Transfer-Encoding")),
        Coding::Endless => Err(bad("Transfer-Encoding does not end in chunked")),
        _ if !is_1_1 => Err(bad("HTTP/1.0 has no Transfer-Encoding")),
        Coding::Unknown => Err(Refusal::new(
            NOT_IMPLEMENTED,
            "no Transfer-Encoding but chunked",
        )),
        Coding::Chunked => Ok(Body::CHUNKED),
    }
}

/// The path of a request's target, in whichever form (RFC 9112 3.2).
fn path(method: Method, target: &str) -> Option<Vec<u8>> {
    let absolute = |target: &str| {
        let scheme = target.get(..7)?;
        let rest = target
            .get(7..)
            .filter(|_| scheme.eq_ignore_ascii_case("http://"))?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        rest.split_at_checked(end)
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, path)| path.len())
    };
    let path = match target {
        "*" if method == Method::Options => return Some(b"*".to_vec()),
        // Its target is a host; we lead to none.
        _ if method == Method::Other && !target.contains('/') => return Some(Vec::new()),
        _ if target.starts_with('/') => target,
        _ => target.get(target.len() - absolute(target)?..)?,
    };
    let path = path.split('?').next().filter(|_| !target.contains('#'))?;
    decoded(if path.is_empty() { "/" } else { path })
}

/// A path without its escapes.
fn decoded(path: &str) -> Option<Vec<u8>> {
    let mut pieces = path.as_bytes().split(|byte| *byte == b'%');
    let mut decoded = pieces.next()?.to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        let digits = core::str::from_utf8(digits).ok();
        let digits =
            digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        decoded.extend_from_slice(rest);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::body::Next;
    use std::format;
    use std::string::String;

    fn request(head: &str) -> Request {
        match parse(head.as_bytes()) {
            Ok(Some((request, length))) => {
                assert_eq!(length, head.len(), "{head:?}");
                request
            }
            other => panic!("{head:?}: {other:?}"),
        }
    }

    fn refused(head: &str) -> u16 {
        match parse(head.as_bytes()) {
            Err(refusal) => refusal.status.0,
            other => panic!("{head:?}: {other:?}"),
        }
    }

    /// A request of HTTP/1.1 with these lines beside its host.
    fn with(lines: &str) -> String {
        format!("POST /a HTTP/1.1\r\nHost: x\r\n{lines}\r\n")
    }

    #[test]
    fn the_same_resource_has_many_targets() {
        for target in [
            "/status.json",
            "/status.json?t=1",
            "/status%2ejson",
            "/%73tatus%2Ejson?%",
            "http://x/status.json",
            "HTTP://x:80/status.json?/",
            "http://[fe80::1]/status.json",
        ] {
            for version in ["1.0", "1.1"] {
                let head = format!("GET {target} HTTP/{version}\r\nHost: x\r\n\r\n");
                assert_eq!(request(&head).path, b"/status.json", "{target}");
            }
        }
        for (target, path) in [
            ("http://x", "/"),
            ("http://x?y", "/"),
            ("/?", "/"),
            ("//x", "//x"),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(request(&head).path, path.as_bytes(), "{target}");
        }
        assert_eq!(request("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").path, b"*");
        let connect = request("CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(connect.method, Method::Other);
        for target in [
            "*",
            "x",
            "x:443",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/a#b",
            "http://",
            "http:///a",
            "https://x/",
            "ftp://x/",
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(refused(&head), 400, "{target}");
        }
    }

    #[test]
    fn methods() {
        for (method, known) in [
            ("GET", Method::Get),
            ("HEAD", Method::Head),
            ("OPTIONS", Method::Options),
            ("DELETE", Method::Other),
            ("get", Method::Unknown),
            ("BREW", Method::Unknown),
        ] {
            let head = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(request(&head).method, known, "{method}");
        }
    }

    #[test]
    fn lines_end_as_people_write_them() {
        assert_eq!(request("\r\n\n\r\nGET / HTTP/1.1\nHost: x\n\n").path, b"/");
        assert_eq!(parse(b"\r\n\r\n"), Ok(None));
        for head in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\nGET / HTTP/1.0\r\n\r\n",
        ] {
            for length in 0..head.len() {
                assert_eq!(parse(&head.as_bytes()[..length]), Ok(None), "{length}");
            }
        }
    }

    #[test]
    fn versions() {
        for (line, status) in [
            ("GET / HTTP/9.9", 505),
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/1.2", 505),
            ("PRI * HTTP/2.0", 505),
            ("GET / http/1.1", 400),
            ("GET / HTTP/11", 400),
            ("GET /", 400),
            ("GET", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET / HTTP/1.1 x", 400),
            ("\u{1}\u{2}\u{3}", 400),
            ("\u{16}\u{3}\u{1}\0", 400),
        ] {
            assert_eq!(
                refused(&format!("{line}\r\nHost: x\r\n\r\n")),
                status,
                "{line}"
            );
        }
    }

    #[test]
    fn a_request_has_one_host() {
        for host in ["x", "x:80", "[::1]:8080", "10.0.2.15", ""] {
            request(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        }
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), 400);
        for (lines, version) in [
            ("Host: x\r\nHost: x\r\n", "1.1"),
            ("Host: a\r\nHOST: b\r\n", "1.0"),
        ] {
            assert_eq!(
                refused(&format!("GET / HTTP/{version}\r\n{lines}\r\n")),
                400
            );
        }
        for host in ["a b", "a/b", "a@b", "a\tb", "\u{fc}"] {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(refused(&head), 400, "{host}");
        }
    }

    #[test]
    fn whose_connection_stays() {
        for (version, connection, stays) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "CONNECTION: Close\r\n", false),
            ("1.1", "Connection: close, TE\r\n", false),
            ("1.1", "Connection: TE\r\nConnection: close\r\n", false),
            ("1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n", true),
            ("1.1", "Connection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: close\r\n", false),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: x\r\n{connection}\r\n");
            assert_eq!(request(&head).keep_alive, stays, "{version} {connection}");
        }
    }

    #[test]
    fn a_body_that_could_be_read_in_two_ways_is_refused() {
        for (lines, body) in [
            ("", Body::NONE),
            ("Content-Length: 5\r\n", Body::Length(5)),
            ("Transfer-Encoding: Chunked\r\n", Body::CHUNKED),
        ] {
            assert_eq!(request(&with(lines)).body, body, "{lines}");
        }
        for (lines, status) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5, 6\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: five\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length: 99999999999999999999\r\n", 400),
            ("Content-Length : 5\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 400),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: \u{b}chunked\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ] {
            assert_eq!(refused(&with(lines)), status, "{lines}");
        }
        let old = "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refused(old), 400);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for lines in [
            "no colon\r\n",
            "X: a\r\n b\r\n",
            " X: a\r\n",
            "X\u{7f}: a\r\n",
            "X: a\0b\r\n",
            ": a\r\n",
        ] {
            assert_eq!(refused(&with(lines)), 400, "{lines:?}");
        }
        request(&with("X: \u{e9}\r\n"));
    }

    #[test]
    fn expectations() {
        assert!(request(&with("Expect: 100-Continue\r\n")).expects_continue);
        assert!(!request(&with("")).expects_continue);
        assert_eq!(refused(&with("Expect: 200-ok\r\n")), 417);
        let old = request("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n");
        assert!(!old.expects_continue);
    }

    #[test]
    fn heads_of_up_to_32_kib_are_taken() {
        let head = |length: usize| {
            let begin = "GET / HTTP/1.1\r\nHost: x\r\nCookie: ";
            format!("{begin}{}\r\n\r\n", "c".repeat(length - begin.len() - 4))
        };
        request(&head(MAX_HEAD_BYTES));
        assert_eq!(refused(&head(MAX_HEAD_BYTES + 1)), 431);
        // It need not be whole before it is too long.
        assert_eq!(parse(&head(50_000).as_bytes()[..MAX_HEAD_BYTES]), Ok(None));
        assert_eq!(refused(&head(50_000)[..MAX_HEAD_BYTES + 1]), 431);
        let lines = |count: usize| with(&"a: b\r\n".repeat(count - 1));
        request(&lines(MAX_LINES));
        assert_eq!(refused(&lines(MAX_LINES + 1)), 431);
        let line = |length: usize| format!("GET /{} HTTP/1.1", "a".repeat(length - 14));
        request(&format!(
            "{}\r\nHost: x\r\n\r\n",
            line(MAX_REQUEST_LINE_BYTES)
        ));
        for end in ["", "\r\n", "\r\nHost: x\r\n\r\n"] {
            assert_eq!(
                refused(&format!("{}{end}", line(MAX_REQUEST_LINE_BYTES + 1))),
                414,
                "{end:?}"
            );
        }
    }

    /// Requests with a few bytes changed, and what follows one of them: whatever they are taken for, reading ends, and uses
    /// no more than there is.
    #[test]
    fn broken_requests_are_read_to_an_end() {
        let whole = [
            "GET http://x:80/a%2fb?c HTTP/1.1\r\nHost: x\r\nConnection: a, close\r\n\r\n",
            "POST / HTTP/1.1\nHost: x\nContent-Length: 5\nExpect: 100-continue\n\nhello",
            "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n00\r\nX: y\r\n\r\n",
        ];
        let telling = b"\r\n :;,%/?#*09afF-+\0\x7f\xff";
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let (mut taken, mut refused) = (0, 0);
        for round in 0..60_000 {
            let mut bytes = whole[round % whole.len()].as_bytes().to_vec();
            for _ in 0..=next(4) {
                let (at, byte) = (next(bytes.len()), telling[next(telling.len())]);
                match next(3) {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            let Ok(Some((mut request, mut used))) = parse(&bytes) else {
                refused += 1;
                continue;
            };
            taken += 1;
            assert!(used <= bytes.len());
            while let Ok(Next::Data(count) | Next::Skip(count)) = request.body.next(&bytes[used..])
            {
                assert!(count > 0, "{:?}", String::from_utf8_lossy(&bytes));
                used += count;
            }
        }
        assert!(taken > 1000 && refused > 1000, "{taken} and {refused}");
    }
}
