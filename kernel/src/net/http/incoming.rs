//! Bytes that came over a connection and were not used yet.

use alloc::vec::Vec;

use embedded_io_async::Read;

use super::web::Web;
use crate::net::tcp::{TcpError, TcpStream};

/// How much is asked for at a time.
const STEP: usize = 4096;

/// What was received and not used yet. Whoever asks for more of it bounds how much that may become.
pub(in crate::net) struct Incoming<'a> {
    stream: &'a TcpStream,
    /// Who has room for more than a step, if that is limited, and how much was taken of it.
    web: Option<&'a Web>,
    taken: usize,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Incoming<'a> {
    pub(in crate::net) fn new(stream: &'a TcpStream) -> Self {
        Self {
            stream,
            web: None,
            taken: 0,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }
    }

    /// The same for one of many clients, who share the room for what is long.
    pub(super) fn sharing(stream: &'a TcpStream, web: &'a Web) -> Self {
        let mut incoming = Self::new(stream);
        incoming.web = Some(web);
        incoming
    }

    pub(in crate::net) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Uses up to `count` bytes.
    pub(in crate::net) fn take(&mut self, count: usize) -> &[u8] {
        let taken = self.start..self.end.min(self.start.saturating_add(count));
        self.start = taken.end;
        self.buffer.get(taken).unwrap_or_default()
    }

    /// Whether a line ended since there were `known` bytes: nothing else makes a head whole, and who sends it byte by byte
    /// shall not have it read from its beginning with each.
    pub(in crate::net) fn has_line_since(&self, known: usize) -> bool {
        let new = self.bytes().get(known..).unwrap_or_default();
        new.contains(&b'\n')
    }

    /// Waits for more bytes; `false` if the peer sends none any more.
    pub(in crate::net) async fn more(&mut self) -> Result<bool, TcpError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == 0 && self.buffer.len() > STEP {
            // A long head is rare, and who sent one may wait for long before the next.
            self.buffer = Vec::new();
            self.give_back();
        }
        let room = self.end.saturating_add(STEP);
        if self.buffer.len() < room {
            let missing = room - self.buffer.len();
            if let Some(web) = self.web.filter(|_| !self.buffer.is_empty()) {
                if !web.take(missing) {
                    return Err(TcpError::OutOfMemory);
                }
                self.taken += missing;
            }
            // There may be many connections: no more than is asked for.
            let reserved = self.buffer.try_reserve_exact(missing);
            reserved.map_err(|_| TcpError::OutOfMemory)?;
            self.buffer.resize(room, 0);
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let mut stream = self.stream;
        let count = stream.read(room).await?;
        self.end += count.min(room.len());
        Ok(count > 0)
    }

    fn give_back(&mut self) {
        if let Some(web) = self.web {
            web.give_back(core::mem::take(&mut self.taken));
        }
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}
