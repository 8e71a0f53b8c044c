//! The connection that a test is controlled by.

use alloc::vec::Vec;

use embedded_io_async::{Read, Write};
use smoltcp::wire::IpEndpoint;

use super::{Failure, STEP, code};
use crate::net::clock::{Clock, within};
use crate::net::tcp::{TcpError, TcpStream};

/// What one side tells the other in a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    TestStart = 1,
    TestRunning = 2,
    TestEnd = 4,
    ParamExchange = 9,
    CreateStreams = 10,
    ClientTerminate = 12,
    ExchangeResults = 13,
    DisplayResults = 14,
    IperfDone = 16,
    /// A number and another one follow, of four bytes each.
    ServerError = 0xfe,
    /// Another test is running.
    AccessDenied = 0xff,
}

impl State {
    /// What a client may say.
    fn of_client(byte: u8) -> Option<Self> {
        let states = [Self::TestEnd, Self::ClientTerminate, Self::IperfDone];
        states.into_iter().find(|state| *state as u8 == byte)
    }
}

pub(super) struct Control<C> {
    stream: TcpStream,
    clock: C,
}

impl<C: Clock> Control<C> {
    pub(super) fn new(stream: TcpStream, clock: C) -> Self {
        Self { stream, clock }
    }

    pub(super) fn client(&self) -> Option<IpEndpoint> {
        self.stream.remote()
    }

    pub(super) fn close(self) {
        self.stream.close();
    }

    pub(super) async fn say(&self, state: State) -> Result<(), Failure> {
        self.write(&[state as u8]).await
    }

    /// Tells the client what is wrong, if it still listens.
    pub(super) async fn refuse(&self, code: u32) {
        let [a, b, c, d] = code.to_be_bytes();
        // The second number is one of the operating system's errors; there is none.
        let message = [State::ServerError as u8, a, b, c, d, 0, 0, 0, 0];
        let _ = self.write(&message).await;
    }

    /// What the client says next, whenever it does.
    pub(super) async fn read_state(&self) -> Result<State, Failure> {
        let mut byte = [0];
        self.fill(&mut byte).await?;
        let [byte] = byte;
        State::of_client(byte).ok_or(Failure::Refused("a state", code::UNKNOWN_MESSAGE))
    }

    /// A text of up to `max` bytes, with its length before it.
    pub(super) async fn read_json(&self, max: usize) -> Result<Vec<u8>, Failure> {
        let read = async {
            let mut length = [0; 4];
            self.fill(&mut length).await?;
            let length = u32::from_be_bytes(length) as usize;
            if length > max {
                return Err(Failure::Refused("a longer message", code::PARAMETERS));
            }
            let mut text = Vec::new();
            let no_memory = Failure::Lost(TcpError::OutOfMemory);
            text.try_reserve_exact(length).map_err(|_| no_memory)?;
            text.resize(length, 0);
            self.fill(&mut text).await?;
            Ok(text)
        };
        within(self.clock, STEP, read).await.ok_or(Failure::Gone)?
    }

    pub(super) async fn write_json(&self, text: &str) -> Result<(), Failure> {
        let length = u32::try_from(text.len()).map_err(|_| Failure::Gone)?;
        self.write(&length.to_be_bytes()).await?;
        self.write(text.as_bytes()).await
    }

    async fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut writer = &self.stream;
        let written = within(self.clock, STEP, writer.write_all(bytes)).await;
        Ok(written.ok_or(Failure::Gone)??)
    }

    async fn fill(&self, mut room: &mut [u8]) -> Result<(), Failure> {
        let mut reader = &self.stream;
        while !room.is_empty() {
            let length = reader.read(room).await?;
            if length == 0 {
                return Err(Failure::Gone);
            }
            room = room
                .split_at_mut_checked(length)
                .map_or(&mut [], |(_, rest)| rest);
        }
        Ok(())
    }
}
