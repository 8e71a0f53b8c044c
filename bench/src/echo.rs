//! A client of a guest's UDP echo service, behind a user-mode network.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vringlet_tests::cell::{Booted, PATIENCE};
use vringlet_tests::net::ECHO;

/// Bytes of a datagram.
const BYTES: usize = 64;

/// How often a guest that is still starting is asked.
const ASK: Duration = Duration::from_millis(200);

/// What a guest that is still starting is asked with. QEMU keeps some of that for it, and the answers may come late.
const QUESTION: [u8; 1] = [0];

pub(crate) struct EchoClient(UdpSocket);

impl EchoClient {
    pub(crate) fn open(guest: &mut Booted) -> Result<Self> {
        let port = guest.process().qmp.forwarded_port("udp", ECHO)?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Waits until the service answers. The Linux guest's begins to measure then.
    pub(crate) fn begin(&self) -> Result<()> {
        let begun = Instant::now();
        self.0.set_read_timeout(Some(ASK))?;
        let mut back = [0; 2 * BYTES];
        while begun.elapsed() < PATIENCE {
            self.0.send(&QUESTION)?;
            if self.0.recv(&mut back).is_ok() {
                self.0.set_read_timeout(Some(PATIENCE))?;
                return Ok(());
            }
        }
        bail!("the echo service does not answer")
    }

    /// One datagram after the other, each when the one before came back.
    pub(crate) fn round_trips(&self, times: u64) -> Result<()> {
        let mut back = [0; 2 * BYTES];
        for number in 0..times {
            let sent = [number as u8; BYTES];
            self.0.send(&sent)?;
            let mut length = QUESTION.len();
            while length == QUESTION.len() {
                length = self.0.recv(&mut back).context("waiting for an echo")?;
            }
            ensure!(back.get(..length) == Some(&sent), "another echo came back");
        }
        Ok(())
    }

    /// Has the Linux guest's service end what it measures, and itself.
    pub(crate) fn end(&self) -> Result<()> {
        self.0.send(&[0; 2])?;
        Ok(())
    }
}
