//! A small HTTP client: one request, the body handed on as it comes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use embedded_io_async::{Read, Write};
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::stack::Stack;
use super::target::{Target, TargetError};
use super::tcp::{Buffers, TcpError, TcpStream};

const DEFAULT_PORT: u16 = 80;
const BUFFERS: Buffers = Buffers {
    receive: 32 * 1024,
    send: 2 * 1024,
};
/// A longer head is refused.
const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
const CHUNK_BYTES: usize = 4096;

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
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://")?;
        match self.target.address {
            IpAddress::Ipv4(address) => write!(f, "{address}")?,
            IpAddress::Ipv6(address) => write!(f, "[{address}]")?,
        }
        match self.port {
            DEFAULT_PORT => {}
            port => write!(f, ":{port}")?,
        }
        f.write_str(&self.path)
    }
}

impl FromStr for Url {
    type Err = FetchError;

    fn from_str(text: &str) -> Result<Self, FetchError> {
        let rest = text.strip_prefix("http://").ok_or(FetchError::NotHttp)?;
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
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
            path: path.to_string(),
        })
    }
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
    /// The response is not HTTP.
    Malformed(String),
    /// The body is shorter than the response said.
    Truncated {
        /// What it said.
        expected: u64,
        /// What came.
        received: u64,
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
            Self::Malformed(what) => write!(f, "the response is not HTTP: {what}"),
            Self::Truncated { expected, received } => {
                write!(f, "the response ended after {received} of {expected} bytes")
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

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Length of the body.
    pub bytes: u64,
}

/// Gets `path` and hands the body to `sink` piece by piece. The caller bounds the time it may take.
pub async fn fetch(
    stack: &'static Stack,
    address: IpAddress,
    url: &Url,
    mut sink: impl FnMut(&[u8]),
) -> Result<Response, FetchError> {
    let stream = TcpStream::connect(stack, IpEndpoint::new(address, url.port), BUFFERS).await?;
    let host = match address {
        IpAddress::Ipv4(address) => address.to_string(),
        IpAddress::Ipv6(address) => format!("[{address}]"),
    };
    // With HTTP/1.0 the body comes as it is and ends with the connection.
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: vringlet\r\n\r\n",
        url.path
    );
    (&stream).write_all(request.as_bytes()).await?;
    let (head, body) = read_head(&stream).await?;
    let mut bytes = 0;
    let mut take = |piece: &[u8]| {
        // Whatever follows the body is not ours.
        let left = head
            .length
            .map_or(u64::MAX, |length| length.saturating_sub(bytes));
        let piece = piece
            .get(..usize::try_from(left).unwrap_or(usize::MAX))
            .unwrap_or(piece);
        bytes += piece.len() as u64;
        sink(piece);
    };
    take(&body);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match (&stream).read(&mut chunk).await? {
            0 => break,
            length => take(chunk.get(..length).unwrap_or_default()),
        }
    }
    stream.close();
    match head.length {
        Some(expected) if bytes < expected => Err(FetchError::Truncated {
            expected,
            received: bytes,
        }),
        _ => Ok(Response {
            status: head.status,
            bytes,
        }),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: Option<u64>,
}

/// The response's head, and what was read of the body along with it.
async fn read_head(mut stream: &TcpStream) -> Result<(Head, Vec<u8>), FetchError> {
    let mut received = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = stream.read(&mut chunk).await?;
        received.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if let Some((head, head_bytes)) = parse_head(&received)? {
            received.drain(..head_bytes.min(received.len()));
            return Ok((head, received));
        }
        if length == 0 || received.len() > MAX_HEAD_BYTES {
            return Err(FetchError::Malformed("its head has no end".into()));
        }
    }
}

/// `None` if there is more to come.
fn parse_head(received: &[u8]) -> Result<Option<(Head, usize)>, FetchError> {
    let malformed = |what: &dyn fmt::Display| FetchError::Malformed(what.to_string());
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response
        .parse(received)
        .map_err(|error| malformed(&error))?
    {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.ok_or_else(|| malformed(&"no status"))?;
    let header = |name: &str| {
        response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
    };
    if header("transfer-encoding").is_some() {
        return Err(malformed(
            &"a transfer encoding, which HTTP/1.0 does not have",
        ));
    }
    let content_length = header("content-length")
        .map(|header| {
            core::str::from_utf8(header.value)
                .ok()
                .and_then(|value| value.trim().parse().ok())
        })
        .map(|value| value.ok_or_else(|| malformed(&"its length is not a number")))
        .transpose()?;
    let head = Head {
        status,
        length: content_length,
    };
    Ok(Some((head, length)))
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
    fn heads() {
        let head = |status, length| Head { status, length };
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Le"), Ok(None));
        let text = b"HTTP/1.1 404 Not Found\r\ncontent-length: 12\r\n\r\nnot there";
        assert_eq!(
            parse_head(text),
            Ok(Some((head(404, Some(12)), text.len() - 9)))
        );
        assert_eq!(
            parse_head(b"HTTP/1.0 200 OK\r\n\r\n"),
            Ok(Some((head(200, None), 19)))
        );
        assert!(parse_head(b"\0\0\0\0\0\0").is_err());
        assert!(parse_head(b"HTTP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
