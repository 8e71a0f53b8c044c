//! A small HTTP client: one request, the body handed on as it comes. It follows no redirects.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use embedded_io_async::Write;
use httparse::{Header, ParserConfig};
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::clock::{Clock, within};
use super::http::MAX_LINES;
use super::http::body::{Body, BodyError, Next};
use super::http::fields::{Coding, coding, content_length, values};
use super::http::incoming::Incoming;
use super::stack::Stack;
use super::target::{Target, TargetError};
use super::tcp::{Buffers, TcpError, TcpStream};

const DEFAULT_PORT: u16 = 80;
const BUFFERS: Buffers = Buffers {
    receive: 32 * 1024,
    send: 2 * 1024,
};
/// A longer head is refused.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// More heads of status 1xx before the response's own are refused.
const MAX_INTERIM: usize = 16;
/// A server that is silent for longer has been asked in vain.
const SILENCE: Duration = Duration::from_secs(60);

/// `http://ADDRESS[:PORT][/PATH]`, with IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Whom to ask.
    pub target: Target,
    /// On which port.
    pub port: u16,
    /// For what.
    pub path: String,
}

impl Url {
    /// The page at `path` of the host at `address`.
    pub fn at(address: IpAddress, path: &str) -> Self {
        let target = Target {
            address,
            interface: None,
        };
        Self {
            target,
            port: DEFAULT_PORT,
            path: path.to_string(),
        }
    }

    /// Whom we ask, as `Host` says it: the port is left out if it is the usual one (RFC 9110 7.2).
    fn host(&self) -> String {
        let port = match self.port {
            DEFAULT_PORT => String::new(),
            port => format!(":{port}"),
        };
        match self.target.address {
            IpAddress::Ipv4(address) => format!("{address}{port}"),
            IpAddress::Ipv6(address) => format!("[{address}]{port}"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.host(), self.path)
    }
}

impl FromStr for Url {
    type Err = FetchError;

    fn from_str(text: &str) -> Result<Self, FetchError> {
        let scheme = text.get(..7).unwrap_or_default();
        let rest = text.get(7..).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("http://") {
            return Err(FetchError::NotHttp);
        }
        // What is behind `#` is for who asks, not for whom is asked.
        let rest = rest.split('#').next().unwrap_or_default();
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = match host.strip_prefix('[') {
            Some(bracketed) => bracketed
                .split_once(']')
                .ok_or(FetchError::Target(TargetError::NotAnAddress))?,
            None => host.split_at(host.find(':').unwrap_or(host.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or(FetchError::Port)?,
            None if port.is_empty() => DEFAULT_PORT,
            None => return Err(FetchError::Port),
        };
        if path.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(FetchError::Path);
        }
        Ok(Self {
            target: host.parse().map_err(FetchError::Target)?,
            port,
            path: encoded(path),
        })
    }
}

/// A path as it is sent: it begins with a slash and is ASCII.
fn encoded(path: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut encoded = slash.to_string();
    for byte in path.bytes() {
        match byte {
            0x80.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// Why there is no response, or no whole one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The URL does not begin with `http://`.
    NotHttp,
    /// The port is not a number from 1 to 65535.
    Port,
    /// The path has spaces or control characters.
    Path,
    /// The host is not an address that we can reach.
    Target(TargetError),
    /// The connection failed.
    Tcp(TcpError),
    /// The connection ended before there was a response.
    NoAnswer,
    /// For a long time nothing came.
    Silent,
    /// The response is not HTTP.
    Malformed(String),
    /// It has more of something than we take.
    TooMuch(&'static str, usize),
    /// The response ended too early.
    Truncated {
        /// How long it should be, if it said so.
        expected: Option<u64>,
        /// What came.
        received: u64,
        /// It was not ended in order.
        reset: bool,
    },
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHttp => write!(f, "the URL does not begin with http://"),
            Self::Port => write!(f, "the port is not a number from 1 to 65535"),
            Self::Path => write!(f, "the path has spaces or control characters"),
            Self::Target(error) => write!(f, "{error}"),
            Self::Tcp(error) => write!(f, "{error}"),
            Self::NoAnswer => write!(f, "the server ended the connection without an answer"),
            Self::Silent => write!(f, "the server sent nothing for {} s", SILENCE.as_secs()),
            Self::Malformed(what) => write!(f, "the response is not HTTP: {what}"),
            Self::TooMuch(what, limit) => write!(f, "the response has more than {limit} {what}"),
            Self::Truncated {
                expected,
                received,
                reset,
            } => {
                let end = if *reset { "was reset" } else { "ended" };
                write!(f, "the response {end} after {received}")?;
                match expected {
                    Some(expected) => write!(f, " of {expected} bytes"),
                    None => write!(f, " bytes of its body"),
                }
            }
        }
    }
}

impl core::error::Error for FetchError {}

impl From<TcpError> for FetchError {
    fn from(error: TcpError) -> Self {
        Self::Tcp(error)
    }
}

impl From<BodyError> for FetchError {
    fn from(error: BodyError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Length of the body.
    pub bytes: u64,
    /// Where else the page is, as the server says it.
    pub location: Option<String>,
}

/// Takes the body of a response.
pub trait Sink {
    /// It will be so long, if the server says so.
    fn length(&mut self, _length: u64) {}

    /// Its next bytes.
    fn piece(&mut self, bytes: &[u8]);
}

impl<F: FnMut(&[u8])> Sink for F {
    fn piece(&mut self, bytes: &[u8]) {
        self(bytes);
    }
}

/// Gets `path` and hands the body to `sink` piece by piece. It takes as long as the server sends something.
pub async fn fetch(
    stack: &'static Stack,
    clock: impl Clock,
    address: IpAddress,
    url: &Url,
    mut sink: impl Sink,
) -> Result<Response, FetchError> {
    let stream = TcpStream::connect(stack, IpEndpoint::new(address, url.port), BUFFERS).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: vringlet/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        url.path,
        url.host(),
        env!("CARGO_PKG_VERSION")
    );
    // A server that is busy may answer and hang up before it has read this. Its answer counts.
    let sent = within(clock, SILENCE, (&stream).write_all(request.as_bytes())).await;
    let _ = sent.ok_or(FetchError::Silent)?;
    let mut incoming = Incoming::new(&stream);
    let head = read_head(&mut incoming, clock).await?;
    let bytes = read_body(head.body, &mut incoming, clock, &mut sink).await?;
    drop(incoming);
    // The server may keep its end open.
    stream.close();
    Ok(Response {
        status: head.status,
        bytes,
        location: head.location,
    })
}

/// Waits for more of the response.
async fn more(incoming: &mut Incoming<'_>, clock: impl Clock) -> Result<bool, FetchError> {
    let more = within(clock, SILENCE, incoming.more()).await;
    Ok(more.ok_or(FetchError::Silent)??)
}

/// Waits until another line of the head ends.
async fn more_lines(incoming: &mut Incoming<'_>, clock: impl Clock) -> Result<bool, FetchError> {
    loop {
        let known = incoming.bytes().len();
        if !more(incoming, clock).await? {
            return Ok(false);
        }
        if incoming.has_line_since(known) || incoming.bytes().len() > MAX_HEAD_BYTES {
            return Ok(true);
        }
    }
}

/// Hands the body on. Returns how long it was.
async fn read_body(
    mut body: Body,
    incoming: &mut Incoming<'_>,
    clock: impl Clock,
    sink: &mut impl Sink,
) -> Result<u64, FetchError> {
    let length = match body {
        Body::Length(length) => Some(length),
        _ => None,
    };
    if let Some(length) = length {
        sink.length(length);
    }
    let mut received = 0;
    loop {
        match body.next(incoming.bytes())? {
            Next::Data(count) => {
                sink.piece(incoming.take(count));
                received += count as u64;
            }
            Next::Skip(count) => {
                incoming.take(count);
            }
            Next::End => return Ok(received),
            Next::More => {
                let reset = match more(incoming, clock).await {
                    Ok(true) => continue,
                    Ok(false) if body == Body::UntilClose => return Ok(received),
                    Ok(false) => false,
                    Err(FetchError::Tcp(TcpError::Reset)) => true,
                    Err(error) => return Err(error),
                };
                return Err(FetchError::Truncated {
                    expected: length,
                    received,
                    reset,
                });
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    body: Body,
    location: Option<String>,
}

/// The response's head, without those that only announce it.
async fn read_head(incoming: &mut Incoming<'_>, clock: impl Clock) -> Result<Head, FetchError> {
    let mut interim = 0;
    loop {
        match parse_head(incoming.bytes())? {
            Some((head, length)) => {
                incoming.take(length);
                match head.status {
                    // We asked for no other protocol.
                    101 => return Err(FetchError::Malformed("another protocol".into())),
                    100..200 if interim == MAX_INTERIM => {
                        return Err(FetchError::TooMuch("interim responses", MAX_INTERIM));
                    }
                    100..200 => interim += 1,
                    _ => return Ok(head),
                }
            }
            None if more_lines(incoming, clock).await? => {}
            None if incoming.bytes().is_empty() => return Err(FetchError::NoAnswer),
            None => return Err(FetchError::Malformed("its head has no end".into())),
        }
    }
}

/// The head at the beginning, and its length; `None` if there is more to come.
fn parse_head(received: &[u8]) -> Result<Option<(Head, usize)>, FetchError> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut response = httparse::Response::new(&mut lines);
    // What old servers write and everybody reads.
    let mut parser = ParserConfig::default();
    parser
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true);
    let length = match parser.parse_response(&mut response, received) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(httparse::Status::Partial) if received.len() <= MAX_HEAD_BYTES => return Ok(None),
        Ok(_) => return Err(FetchError::TooMuch("bytes in its head", MAX_HEAD_BYTES)),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(FetchError::TooMuch("header lines", MAX_LINES));
        }
        Err(error) => return Err(FetchError::Malformed(error.to_string())),
    };
    let status = response.code.filter(|code| *code >= 100);
    let status = status.ok_or_else(|| FetchError::Malformed("no status".into()))?;
    let location = values(response.headers, "location").next();
    let head = Head {
        status,
        body: body(status, response.headers)?,
        location: location.map(|value| String::from_utf8_lossy(value).into_owned()),
    };
    Ok(Some((head, length)))
}

/// How long the body is (RFC 9112 6.3).
fn body(status: u16, headers: &[Header<'_>]) -> Result<Body, FetchError> {
    match (status, coding(headers)) {
        (100..200 | 204 | 304, _) => Ok(Body::NONE),
        (_, Coding::Chunked) => Ok(Body::CHUNKED),
        (_, Coding::Identity) => match content_length(headers) {
            Ok(length) => Ok(length.map_or(Body::UntilClose, Body::Length)),
            Err(_) => Err(FetchError::Malformed("Content-Length is no number".into())),
        },
        _ => {
            let what = "a Transfer-Encoding other than chunked";
            Err(FetchError::Malformed(what.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = |text: &str| text.parse::<Url>();
        let parts = |text: &str| {
            url(text)
                .map(|url| (url.target.address.to_string(), url.port, url.path))
                .unwrap()
        };
        assert_eq!(
            parts("http://10.0.2.2"),
            ("10.0.2.2".into(), 80, "/".into())
        );
        assert_eq!(
            parts("http://10.0.2.2:8080/a?b"),
            ("10.0.2.2".into(), 8080, "/a?b".into())
        );
        assert_eq!(
            parts("http://[fe80::2%net0]:81/"),
            ("fe80::2".into(), 81, "/".into())
        );
        assert_eq!(url("10.0.2.2"), Err(FetchError::NotHttp));
        assert_eq!(url("http://10.0.2.2:0/"), Err(FetchError::Port));
        assert_eq!(url("http://10.0.2.2:70000/"), Err(FetchError::Port));
        assert_eq!(url("http://[::1]x/"), Err(FetchError::Port));
        assert_eq!(
            url("http://[::1/"),
            Err(FetchError::Target(TargetError::NotAnAddress))
        );
        assert_eq!(
            url("http://example.org/"),
            Err(FetchError::Target(TargetError::NotAnAddress))
        );
        assert_eq!(url("http://10.0.2.2/\r\nX: y"), Err(FetchError::Path));
    }

    #[test]
    fn what_is_asked_for_is_ascii_and_without_a_fragment() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        for (text, path) in [
            ("http://10.0.2.2?x", "/?x"),
            ("http://10.0.2.2#x", "/"),
            ("HTTP://10.0.2.2/a?b#c?d", "/a?b"),
            ("http://10.0.2.2/\u{fc}%20", "/%C3%BC%20"),
        ] {
            assert_eq!(url(text).path, path, "{text}");
        }
        for (text, host) in [
            ("http://10.0.2.2/", "10.0.2.2"),
            ("http://10.0.2.2:80/", "10.0.2.2"),
            ("http://10.0.2.2:18080/", "10.0.2.2:18080"),
            ("http://[fe80::2%net0]:81/", "[fe80::2]:81"),
        ] {
            assert_eq!(url(text).host(), host, "{text}");
        }
    }

    fn head(text: &str) -> Result<Head, FetchError> {
        let text = std::format!("{text}\r\n\r\n");
        parse_head(text.as_bytes()).map(|head| {
            let (head, length) = head.expect("a whole head");
            assert_eq!(length, text.len());
            head
        })
    }

    #[test]
    fn where_a_body_ends() {
        for (text, status, body) in [
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 12",
                404,
                Body::Length(12),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
                200,
                Body::Length(5),
            ),
            ("HTTP/1.0 200 OK", 200, Body::UntilClose),
            (
                "HTTP/1.1 200\r\nTransfer-Encoding: Chunked",
                200,
                Body::CHUNKED,
            ),
            (
                "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
                200,
                Body::CHUNKED,
            ),
            (
                "HTTP/1.1 204 No Content\r\nContent-Length: 5",
                204,
                Body::NONE,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 5",
                304,
                Body::NONE,
            ),
            ("HTTP/1.1 100 Continue", 100, Body::NONE),
            (
                "HTTP/1.0 200 OK\nServer: caf\u{e9}\nContent-Length : 5",
                200,
                Body::Length(5),
            ),
            (
                "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length:\r\n\t5",
                200,
                Body::Length(5),
            ),
        ] {
            let found = head(text).map(|head| (head.status, head.body));
            assert_eq!(found, Ok((status, body)), "{text}");
        }
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: -1",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "HTTP/1.1 200 OK\r\nno colon",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 099 OK",
            "HTTP/2.0 200 OK",
            "\0\0\0\0",
        ] {
            assert!(
                matches!(head(text), Err(FetchError::Malformed(_))),
                "{text}"
            );
        }
        let moved = head("HTTP/1.1 301 Moved\r\nLocation: /there \r\nContent-Length: 0");
        assert_eq!(moved.unwrap().location.as_deref(), Some("/there"));
    }

    #[test]
    fn heads_are_taken_up_to_a_limit_that_the_error_tells() {
        let lines =
            |count: usize, line: &str| std::format!("HTTP/1.1 200 OK\r\n{}", line.repeat(count));
        // A hundred lines of 200 bytes, as some servers send.
        assert!(head(lines(100, &std::format!("X: {}\r\n", "v".repeat(200))).trim_end()).is_ok());
        assert!(head(lines(MAX_LINES, "X: v\r\n").trim_end()).is_ok());
        let error = head(lines(MAX_LINES + 1, "X: v\r\n").trim_end()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the response has more than 256 header lines"
        );
        let long = lines(70, &std::format!("X: {}\r\n", "v".repeat(1000)));
        assert_eq!(parse_head(&long.as_bytes()[..MAX_HEAD_BYTES]), Ok(None));
        for text in [&long[..MAX_HEAD_BYTES + 1], &std::format!("{long}\r\n")] {
            let error = parse_head(text.as_bytes()).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the response has more than 65536 bytes in its head"
            );
        }
    }
}
