//! QEMU's debugger socket, as far as spoiling a register of a running guest needs: faults made from outside.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A register, by its number in the x86-64 remote protocol.
#[derive(Clone, Copy, Debug)]
pub enum Register {
    /// The instruction pointer.
    Rip = 16,
}

/// A connection to QEMU's debugger stub. The guest stands still until [`Debugger::resume`].
pub struct Debugger {
    stream: UnixStream,
}

impl Debugger {
    /// Takes over a fresh connection, which stops the guest.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut debugger = Debugger { stream };
        debugger.request("?")?;
        Ok(debugger)
    }

    /// Sets a register of the first processor.
    pub fn set(&mut self, register: Register, value: u64) -> Result<()> {
        let reply = self.request(&format!(
            "P{:x}={:016x}",
            register as u32,
            value.swap_bytes()
        ))?;
        if reply != "OK" {
            bail!("setting {register:?}: the debugger stub said {reply:?}");
        }
        Ok(())
    }

    /// Lets the guest run again, without a debugger.
    pub fn resume(mut self) -> Result<()> {
        self.request("D").map(drop)
    }

    /// Sends a packet and returns the reply's payload.
    fn request(&mut self, payload: &str) -> Result<String> {
        let checksum = payload.bytes().fold(0u8, u8::wrapping_add);
        write!(self.stream, "${payload}#{checksum:02x}").context("the debugger socket")?;
        // `+` acknowledges the request; the reply is `$payload#xx` and wants a `+` too.
        let mut reply = Vec::new();
        let mut byte = [0];
        while reply.iter().rev().nth(2) != Some(&b'#') {
            self.stream
                .read_exact(&mut byte)
                .context("the debugger socket")?;
            if !reply.is_empty() || byte[0] == b'$' {
                reply.push(byte[0]);
            }
        }
        self.stream.write_all(b"+").context("the debugger socket")?;
        Ok(String::from_utf8_lossy(&reply[1..reply.len() - 3]).into_owned())
    }
}
