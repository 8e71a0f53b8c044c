//! HTTP/1.1: the server of the status page, and what the client ([`fetch`](super::fetch)) shares with it.
//!
//! ```text
//!   server                                  connections: requests in order, answers, time
//!   request          (fetch: responses)     heads: read by httparse, checked
//!   body, fields                            how long a body is, its chunks, lines of a head
//!   incoming                                bytes that came and were not used yet
//!   web                                     what all connections share: room for long heads, counters
//! ```

pub(super) mod body;
pub(super) mod fields;
pub(super) mod incoming;
mod request;
mod server;
mod web;

pub use server::serve_status;
pub use web::{Web, WebStats};

/// A head with more lines is refused, a request's and a response's.
pub(super) const MAX_LINES: usize = 256;
