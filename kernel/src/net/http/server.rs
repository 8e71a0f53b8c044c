//! The status page on port 80: `/` for people, `/status.json` for programs.

use alloc::format;
use alloc::string::String;
use core::convert::Infallible;
use core::pin::pin;
use core::time::Duration;

use chrono::{DateTime, Datelike, Month, Timelike, Utc};
use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use embedded_io_async::{Read, Write};
use spin::LazyLock;

use super::body::{Body, Next};
use super::incoming::Incoming;
use super::request::{
    BAD_REQUEST, MAX_HEAD_BYTES, Method, NOT_IMPLEMENTED, Refusal, Request, Status, TIMEOUT, parse,
};
use super::web::Web;
use crate::net::clock::{Clock, within};
use crate::net::connections::serve;
use crate::net::stack::Stack;
use crate::net::tcp::{Buffers, Listener, TcpError, TcpStream};

const PORT: u16 = 80;
const BUFFERS: Buffers = Buffers {
    receive: 2 * 1024,
    send: 8 * 1024,
};
/// Served at a time; as many again wait, established.
const AT_ONCE: usize = 64;
const MAX_CONNECTIONS: usize = 2 * AT_ONCE;

/// A client may be silent for so long before its request if others wait for its place, and up to [`MAX_IDLE`] if
/// nobody does; it is looked at every [`IDLE_CHECK`].
const IDLE: Duration = Duration::from_secs(4);
const MAX_IDLE: Duration = Duration::from_secs(60);
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// A request that has begun is whole after this, with its body.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// A client takes something of its answer in this.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// From then on an answer is the connection's last.
const LAST_ANSWER: Duration = Duration::from_secs(100);
/// No connection lasts longer, however busy it is: one that reads a byte now and then would hold its place for ever.
const MAX_LIFETIME: Duration = Duration::from_secs(120);
/// Who stops reading or talking after the server has, has this long to notice.
const LINGER: Duration = Duration::from_secs(2);

/// A request's body is of no use here. A short one is read, so that the next request is found behind it; a longer one
/// ends the connection.
const MAX_BODY_BYTES: u64 = 64 * 1024;

/// The page around the data that it shows first; it fetches newer data by itself.
static PAGE: &str = include_str!("page.html");
const DATA: &str = "{{STATUS}}";
/// The page in front of the data and behind it: it is not searched for each client.
static PARTS: LazyLock<(&str, &str)> =
    LazyLock::new(|| PAGE.split_once(DATA).unwrap_or((PAGE, "")));

const OK: Status = Status(200, "OK");
const NO_CONTENT: Status = Status(204, "No Content");
const NOT_FOUND: Status = Status(404, "Not Found");
const METHOD_NOT_ALLOWED: Status = Status(405, "Method Not Allowed");
const UNAVAILABLE: Status = Status(503, "Service Unavailable");

/// Serves the page; `status` makes what `/status.json` shows.
pub async fn serve_status<C: Clock>(
    stack: &'static Stack,
    clock: C,
    web: &'static Web,
    status: impl Fn() -> String + Copy + 'static,
) -> Infallible {
    let listener = &Listener::new(stack, PORT, BUFFERS, MAX_CONNECTIONS);
    serve(listener, AT_ONCE, |stream| async move {
        let connection = Connection {
            stream: &stream,
            clock,
            listener,
            web,
            begin: clock.now(),
        };
        // What went wrong the client has been told, if it could be told; it concerns nobody else.
        match within(clock, MAX_LIFETIME, connection.serve(status)).await {
            Some(Ok(())) => connection.linger().await,
            Some(Err(_)) => {}
            None => web.count_cut(),
        }
    })
    .await
}

/// One client.
struct Connection<'a, C> {
    stream: &'a TcpStream,
    clock: C,
    listener: &'a Listener,
    web: &'a Web,
    begin: Duration,
}

/// What is answered. The body is in pieces, so that the page need not be copied.
struct Answer<'a> {
    status: Status,
    fields: &'a str,
    content_type: &'a str,
    body: [&'a str; 3],
}

impl<'a> Answer<'a> {
    fn new(status: Status, content_type: &'a str, body: [&'a str; 3]) -> Self {
        Self {
            status,
            fields: "",
            content_type,
            body,
        }
    }

    fn text(status: Status, text: &'a str) -> Self {
        Self::new(status, "text/plain", [text, "\n", ""])
    }

    /// Says what our resources can do.
    fn allowing(self) -> Self {
        Self {
            fields: "Allow: GET, HEAD, OPTIONS\r\n",
            ..self
        }
    }
}

/// Why there is no request.
enum Failure {
    Refused(Refusal),
    Tcp(TcpError),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TcpError> for Failure {
    fn from(error: TcpError) -> Self {
        match error {
            // The connection is sound, and can be told.
            TcpError::OutOfMemory => {
                let why = "there is no room for a request this long now";
                Self::Refused(Refusal::new(UNAVAILABLE, why))
            }
            error => Self::Tcp(error),
        }
    }
}

impl<C: Clock> Connection<'_, C> {
    /// Answers request after request, until an answer is the last.
    async fn serve(&self, status: impl Fn() -> String) -> Result<(), TcpError> {
        let mut incoming = Incoming::sharing(self.stream, self.web);
        while self.begins(&mut incoming).await? {
            let whole = within(self.clock, REQUEST_TIME, request(&mut incoming)).await;
            let late = Refusal::new(TIMEOUT, "the request took longer than 5 s");
            match whole.unwrap_or(Err(late.into())) {
                Ok(mut request) => {
                    self.web.count_request();
                    request.keep_alive &= self.clock.now() - self.begin < LAST_ANSWER;
                    self.answer(&request, &status).await?;
                    if !request.keep_alive {
                        break;
                    }
                    // However many requests came at once, others have their turn between two.
                    yield_now().await;
                }
                Err(Failure::Refused(Refusal { status, why })) => {
                    self.web.count_refused();
                    self.send(&Answer::text(status, why), true, false).await?;
                    break;
                }
                Err(Failure::Tcp(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a request to begin; `false` if none does.
    async fn begins(&self, incoming: &mut Incoming<'_>) -> Result<bool, TcpError> {
        // Empty lines win no time.
        let mut patience = pin!(self.patience());
        loop {
            // Some clients send an empty line behind a body (RFC 9112 2.2).
            let ends = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            let blank = incoming.bytes().iter().take_while(ends).count();
            incoming.take(blank);
            if !incoming.bytes().is_empty() {
                return Ok(true);
            }
            match select(incoming.more(), patience.as_mut()).await {
                Either::First(Ok(true)) => {}
                Either::First(end) => return end,
                Either::Second(()) => return Ok(false),
            }
        }
    }

    async fn patience(&self) {
        self.clock.after(IDLE).await;
        let mut waited = IDLE;
        while waited < MAX_IDLE && !self.listener.is_crowded() {
            self.clock.after(IDLE_CHECK).await;
            waited += IDLE_CHECK;
        }
    }

    async fn answer(&self, request: &Request, status: impl Fn() -> String) -> Result<(), TcpError> {
        let json;
        let answer = match (request.method, &request.path[..]) {
            (Method::Get | Method::Head, b"/") => {
                let (before, after) = *PARTS;
                json = escaped(status());
                Answer::new(OK, "text/html; charset=utf-8", [before, &json, after])
            }
            (Method::Get | Method::Head, b"/status.json") => {
                json = status();
                Answer::new(OK, "application/json", [&json, "", ""])
            }
            (Method::Options, _) => Answer::new(NO_CONTENT, "", [""; 3]).allowing(),
            (Method::Unknown, _) => Answer::text(NOT_IMPLEMENTED, "no such method"),
            (Method::Other, b"/" | b"/status.json" | b"") => {
                Answer::text(METHOD_NOT_ALLOWED, "GET, HEAD or OPTIONS").allowing()
            }
            _ => Answer::text(NOT_FOUND, "there is / and /status.json"),
        };
        let with_body = request.method != Method::Head;
        self.send(&answer, with_body, request.keep_alive).await
    }

    async fn send(
        &self,
        answer: &Answer<'_>,
        with_body: bool,
        keep_alive: bool,
    ) -> Result<(), TcpError> {
        let Answer {
            status: Status(code, name),
            fields,
            content_type,
            body,
        } = answer;
        let length: usize = body.iter().map(|piece| piece.len()).sum();
        let content = match *code {
            // It has none, and must not say how much (RFC 9110 8.6).
            204 => String::new(),
            _ => format!("Content-Type: {content_type}\r\nContent-Length: {length}\r\n"),
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let date = self.clock.date().map(date_line).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {code} {name}\r\n{date}{content}{fields}Cache-Control: no-store\r\nConnection: {connection}\r\n\r\n"
        );
        self.write(&head).await?;
        for piece in body.iter().filter(|_| with_body) {
            self.write(piece).await?;
        }
        Ok(())
    }

    async fn write(&self, text: &str) -> Result<(), TcpError> {
        let mut stream = self.stream;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = within(self.clock, WRITE_TIME, stream.write(rest)).await;
            let written = written.ok_or(TcpError::Reset)??;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the connection from our side and reads on for a while: a client that is still writing would not see the
    /// response if nobody took what it writes. (A reset could even overtake the response.)
    async fn linger(&self) {
        self.stream.finish();
        let rest = async {
            let mut stream = self.stream;
            let mut dropped = [0; 256];
            while let Ok(1..) = stream.read(&mut dropped).await {}
        };
        // It is over in any case.
        let _ = within(self.clock, LINGER, rest).await;
    }
}

/// RFC 9110 6.6.1: whoever knows the time says it.
fn date_line(date: DateTime<Utc>) -> String {
    let month = u8::try_from(date.month()).ok();
    let month = month.and_then(|month| Month::try_from(month).ok());
    let month = month.and_then(|month| month.name().get(..3));
    format!(
        "Date: {}, {:02} {} {} {:02}:{:02}:{:02} GMT\r\n",
        date.weekday(),
        date.day(),
        month.unwrap_or_default(),
        date.year(),
        date.hour(),
        date.minute(),
        date.second()
    )
}

/// The next request. Its head and what was read of its body are used up.
async fn request(incoming: &mut Incoming<'_>) -> Result<Request, Failure> {
    let mut request = loop {
        if let Some((request, length)) = parse(incoming.bytes())? {
            incoming.take(length);
            break request;
        }
        if !more_lines(incoming).await? {
            return Err(Refusal::new(BAD_REQUEST, "the request's head has no end").into());
        }
    };
    // Who asks whether to send a body gets the answer instead. Whether the body comes nevertheless is not known.
    let found_end = match request.expects_continue {
        true => request.body == Body::NONE,
        false => drop_body(request.body, incoming).await?,
    };
    request.keep_alive &= found_end;
    Ok(request)
}

/// Waits until another line ends.
async fn more_lines(incoming: &mut Incoming<'_>) -> Result<bool, TcpError> {
    loop {
        let known = incoming.bytes().len();
        if !incoming.more().await? {
            return Ok(false);
        }
        if incoming.has_line_since(known) || incoming.bytes().len() > MAX_HEAD_BYTES {
            return Ok(true);
        }
    }
}

/// Reads a body that is of no use here. `false` if it is too long to be read.
async fn drop_body(mut body: Body, incoming: &mut Incoming<'_>) -> Result<bool, Failure> {
    let mut read = 0;
    loop {
        if read > MAX_BODY_BYTES || matches!(body, Body::Length(length) if length > MAX_BODY_BYTES)
        {
            return Ok(false);
        }
        match body.next(incoming.bytes()) {
            Ok(Next::Data(count) | Next::Skip(count)) => {
                incoming.take(count);
                read += count as u64;
            }
            Ok(Next::End) => return Ok(true),
            Ok(Next::More) => {
                if !incoming.more().await? {
                    return Err(Refusal::new(BAD_REQUEST, "the body has no end").into());
                }
            }
            Err(_) => return Err(Refusal::new(BAD_REQUEST, "a malformed chunk").into()),
        }
    }
}

/// JSON that may stand inside a script element: nothing in it looks like a tag.
fn escaped(json: String) -> String {
    match json.as_bytes().contains(&b'<') {
        true => json.replace('<', "\\u003c"),
        false => json,
    }
}
