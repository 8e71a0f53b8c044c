//! The web page on port 80, served by picoserve: `/` for people, `/status.json` for programs.

use alloc::string::String;
use alloc::vec;
use core::convert::Infallible;
use core::time::Duration;

use picoserve::io::{Read, ReadExt, Write};
use picoserve::mem::{BorrowedBuffer, BorrowedCursor};
use picoserve::request::RequestParts;
use picoserve::response::{Content, IntoResponse, ResponseWriter, StatusCode};
use picoserve::routing::{Layer, Next, get};
use picoserve::{Config, ResponseSent, Router, Server, Timeouts, Timer};

use super::clock::{Clock, within};
use super::connections::serve;
use super::stack::Stack;
use super::tcp::{Buffers, Listener, TcpError, TcpStream};

const PORT: u16 = 80;
const BUFFERS: Buffers = Buffers {
    receive: 2 * 1024,
    send: 8 * 1024,
};
/// Served at a time; as many again wait, established.
const AT_ONCE: usize = 64;
const LIMIT: usize = 2 * AT_ONCE;
/// A request's head longer than this is malformed.
const REQUEST_BYTES: usize = 2048;
/// No connection lasts longer, however busy it is: one that reads a byte now and then would hold its place for ever.
const LIFETIME: Duration = Duration::from_secs(120);

/// Who stops reading or talking after the server has, has this long to notice.
const LINGER: picoserve::time::Duration = picoserve::time::Duration::from_secs(2);

/// The page around the data that it shows first; it fetches newer data by itself.
static PAGE: &str = include_str!("page.html");
const DATA: &str = "{{STATUS}}";

/// A client may be silent for so long before its request if others wait for its place, and up to [`LONGEST_IDLE`] if
/// nobody does; it is looked at every [`IDLE_CHECK`]. (No other of picoserve's timeouts has this length: it is told by it.)
const IDLE: picoserve::time::Duration = picoserve::time::Duration::from_secs(4);
const LONGEST_IDLE: Duration = Duration::from_secs(60);
const IDLE_CHECK: Duration = Duration::from_secs(1);

static CONFIG: Config = Config::new(Timeouts {
    start_read_request: IDLE,
    persistent_start_read_request: IDLE,
    read_request: picoserve::time::Duration::from_secs(5),
    write: picoserve::time::Duration::from_secs(5),
})
.keep_connection_alive();

/// Serves the page; `status` makes what `/status.json` shows.
pub async fn serve_status<C: Clock>(
    stack: &'static Stack,
    clock: C,
    status: impl Fn() -> String + Copy + 'static,
) -> Infallible {
    let router = &Router::new()
        .route("/", get(async move || uncached(Page(escaped(status())))))
        .route("/status.json", get(async move || uncached(Json(status()))))
        .layer(KnownVersions);
    let listener = &Listener::new(stack, PORT, BUFFERS, LIMIT);
    serve(listener, AT_ONCE, |stream| async move {
        let mut request = vec![0; REQUEST_BYTES];
        let server = Server::custom(
            router,
            ServiceClock { clock, listener },
            &CONFIG,
            &mut request,
        );
        // What a client did wrong it has been told, if it could be told; it concerns nobody else.
        let _ = within(clock, LIFETIME, server.serve(stream)).await;
    })
    .await
}

fn uncached<T>(content: T) -> ((&'static str, &'static str), T) {
    (("Cache-Control", "no-store"), content)
}

/// A response body that says what it is.
struct Json(String);

impl Content for Json {
    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn content_length(&self) -> usize {
        self.0.len()
    }

    async fn write_content<W: Write>(self, mut writer: W) -> Result<(), W::Error> {
        writer.write_all(self.0.as_bytes()).await
    }
}

/// The page with its data.
struct Page(String);

impl Content for Page {
    fn content_type(&self) -> &'static str {
        "text/html; charset=utf-8"
    }

    fn content_length(&self) -> usize {
        let (before, after) = halves();
        before.len() + self.0.len() + after.len()
    }

    async fn write_content<W: Write>(self, mut writer: W) -> Result<(), W::Error> {
        let (before, after) = halves();
        writer.write_all(before.as_bytes()).await?;
        writer.write_all(self.0.as_bytes()).await?;
        writer.write_all(after.as_bytes()).await
    }
}

fn halves() -> (&'static str, &'static str) {
    PAGE.split_once(DATA).unwrap_or((PAGE, ""))
}

/// JSON that may stand inside a script element: nothing in it looks like a tag.
fn escaped(json: String) -> String {
    json.replace('<', "\\u003c")
}

/// Refuses what is no version of HTTP that we speak; picoserve takes any word.
struct KnownVersions;

impl<State, PathParameters> Layer<State, PathParameters> for KnownVersions {
    type NextState = State;
    type NextPathParameters = PathParameters;

    async fn call_layer<'a, R, N, W>(
        &self,
        next: N,
        state: &State,
        path_parameters: PathParameters,
        request: RequestParts<'_>,
        writer: W,
    ) -> Result<ResponseSent, W::Error>
    where
        R: Read + 'a,
        N: Next<'a, R, State, PathParameters>,
        W: ResponseWriter<Error = R::Error>,
    {
        match request.http_version() {
            "HTTP/1.1" | "HTTP/1.0" => next.run(state, path_parameters, writer).await,
            _ => {
                let refusal = (
                    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                    "HTTP/1.0 or HTTP/1.1\r\n",
                );
                refusal
                    .write_to(next.into_connection().await?, writer)
                    .await
            }
        }
    }
}

/// Tells picoserve's traits which sockets and timers go together.
struct OurRuntime;

struct ServiceClock<'a, C> {
    clock: C,
    listener: &'a Listener,
}

impl<C: Clock> Timer<OurRuntime> for ServiceClock<'_, C> {
    async fn delay(&self, duration: picoserve::time::Duration) {
        let delay = Duration::from_millis(duration.as_millis());
        self.clock.after(delay).await;
        let mut waited = delay;
        while duration == IDLE && waited < LONGEST_IDLE && !self.listener.is_crowded() {
            self.clock.after(IDLE_CHECK).await;
            waited += IDLE_CHECK;
        }
    }
}

impl Write for &TcpStream {
    async fn write_with<F: FnOnce(BorrowedCursor<'_>) -> R, R>(
        &mut self,
        f: F,
    ) -> Result<R, TcpError> {
        self.write_in_place(|room| {
            let mut buffer = BorrowedBuffer::new(room);
            let result = f(buffer.unfilled());
            (buffer.len(), result)
        })
        .await
    }
}

impl picoserve::io::Socket<OurRuntime> for TcpStream {
    type Error = TcpError;
    type ReadHalf<'a> = &'a TcpStream;
    type WriteHalf<'a> = &'a TcpStream;

    fn split(&mut self) -> (&TcpStream, &TcpStream) {
        (self, self)
    }

    /// Not a reset: that could overtake the response that says what was wrong.
    async fn abort<T: Timer<OurRuntime>>(
        self,
        _: &Timeouts,
        clock: &T,
    ) -> Result<(), picoserve::Error<TcpError>> {
        linger(self, clock).await;
        Ok(())
    }

    async fn shutdown<T: Timer<OurRuntime>>(
        self,
        _: &Timeouts,
        clock: &T,
    ) -> Result<(), picoserve::Error<TcpError>> {
        linger(self, clock).await;
        Ok(())
    }
}

/// Ends the connection from our side and reads on for a while: a client that is still writing would not see the
/// response if nobody took what it writes.
async fn linger<T: Timer<OurRuntime>>(stream: TcpStream, clock: &T) {
    stream.finish();
    let rest = async { (&stream).discard_all_data().await };
    // It is over in any case.
    let _ = clock.run_with_timeout(LINGER, rest).await;
    stream.close();
}
