//! A request (spec 5.4.6): a buffer for the device to fill.

use crate::buffer::Buffer;
use crate::error::Cause;
use crate::queue::{Chain, Payload};

/// The most that the faces' methods ask for at once.
const BUFFER_LEN: usize = 4096;

/// A buffer to be filled with random bytes; afterwards, how far it is.
#[derive(Debug)]
pub struct Request {
    buffer: Buffer,
    given: usize,
}

impl Request {
    /// Asks for as many bytes as `buffer` has, at least one.
    pub fn new(buffer: Buffer) -> Self {
        Self { buffer, given: 0 }
    }

    /// Asks for `len` bytes, or fewer if that is much.
    pub(super) fn for_bytes(len: usize) -> Result<Self, Cause> {
        let buffer = Buffer::zeroed(len.min(BUFFER_LEN));
        buffer.map(Self::new).ok_or(Cause::NoMemory)
    }

    /// The random bytes; none before the device has answered.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.given).unwrap_or_default()
    }

    /// The buffer, shortened to the random bytes.
    pub fn into_buffer(mut self) -> Buffer {
        self.buffer.truncate(self.given);
        self.buffer
    }

    pub(super) fn is_full(&self) -> bool {
        self.given == self.buffer.len()
    }

    /// Copies the random bytes to the beginning of `bytes`; says how many.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let places = bytes.iter_mut().zip(self.bytes());
        places.map(|(place, byte)| *place = *byte).count()
    }

    /// The device is done, and says how much it wrote. What else is in the buffer may have been there before.
    pub(super) fn filled(&mut self, written: Result<u32, Cause>) -> Result<(), Cause> {
        let result = match written {
            Ok(0) => Err(Cause::ShortResponse { len: 0, need: 1 }),
            written => written,
        };
        self.given = result.map_or(0, |len| len as usize);
        result.map(drop)
    }
}

impl Payload for Request {
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
        // Of an earlier answer, if the request is one that came back.
        self.given = 0;
        chain.writable(&mut self.buffer);
    }
}
