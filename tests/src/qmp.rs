//! QEMU's control socket: commands and events.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to answer a command.
const BOUND: Duration = Duration::from_secs(60);

/// A connection to QEMU's machine protocol.
pub struct Qmp {
    writer: UnixStream,
    messages: Receiver<Value>,
    events: Vec<Value>,
}

impl Qmp {
    /// Takes over a fresh connection: greeting, then command mode.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let (sender, messages) = channel();
        let reader = BufReader::new(stream.try_clone().context("the QMP socket")?);
        std::thread::spawn(move || {
            let values = reader
                .lines()
                .map_while(|line| line.ok())
                .filter_map(|line| serde_json::from_str(&line).ok());
            for value in values {
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        let mut qmp = Qmp {
            writer: stream,
            messages,
            events: Vec::new(),
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.writer, "{request}").with_context(|| format!("sending QMP {command}"))?;
        loop {
            let mut message = match self.messages.recv_timeout(BOUND) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("QMP {command}: no answer within {} s", BOUND.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("QMP {command}: QEMU has ended"),
            };
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!(
                    "QMP {command}: {}",
                    error["desc"].as_str().unwrap_or("unknown error")
                );
            } else if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Runs a command of the human monitor and returns what it prints.
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let result = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(result.as_str().unwrap_or_default().to_string())
    }

    /// All events so far that have this name, oldest first.
    pub fn events(&mut self, name: &str) -> Vec<Value> {
        self.events.extend(
            self.messages
                .try_iter()
                .filter(|message| message.get("event").is_some()),
        );
        self.events
            .iter()
            .filter(|event| event["event"] == name)
            .cloned()
            .collect()
    }

    /// Every event until QEMU closes the connection, which is when it ends.
    pub fn drain(&mut self) {
        while let Ok(message) = self.messages.recv_timeout(Duration::from_secs(5)) {
            self.events.push(message);
        }
    }

    /// Has the user-mode network back end forward a port of this machine, 0 for any, to `guest_port`; says whether
    /// it could.
    pub fn forward(
        &mut self,
        netdev: &str,
        protocol: &str,
        port: u16,
        guest_port: u16,
    ) -> Result<bool> {
        // The monitor says nothing when it is done, and something when it is not.
        let said = self.monitor(&format!(
            "hostfwd_add {netdev} {protocol}:127.0.0.1:{port}-:{guest_port}"
        ))?;
        Ok(said.trim().is_empty())
    }

    /// The port of this machine that a user-mode network forwards to `guest_port`.
    pub fn forwarded_port(&mut self, protocol: &str, guest_port: u16) -> Result<u16> {
        let table = self.monitor("info usernet")?;
        forwarded_port(&table, protocol, guest_port)
            .with_context(|| format!("no {protocol} port {guest_port} is forwarded: {table}"))
    }

    /// The names of the feature bits that the guest took from the device with this id.
    pub fn negotiated_features(&mut self, id: &str) -> Result<Vec<String>> {
        let devices = self.execute("x-query-virtio", json!({}))?;
        let path = devices
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|device| device["path"].as_str())
            .find(|path| path.split('/').any(|part| part == id))
            .with_context(|| format!("QEMU has no virtio device {id}"))?
            .to_string();
        let status = self.execute("x-query-virtio-status", json!({ "path": path }))?;
        let features = &status["guest-features"];
        let names = ["transports", "dev-features"]
            .iter()
            .filter_map(|list| features[list].as_array())
            .flatten();
        // Each is "NAME: explanation".
        Ok(names
            .filter_map(|name| name.as_str()?.split(':').next())
            .map(str::to_string)
            .collect())
    }
}

/// Finds a line such as `TCP[HOST_FORWARD]  8  127.0.0.1 40685  10.0.2.15  80  0 0`.
fn forwarded_port(table: &str, protocol: &str, guest_port: u16) -> Option<u16> {
    let kind = format!("{}[HOST_FORWARD]", protocol.to_uppercase());
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [first, _, _, host, _, guest, ..]
                if first == kind && guest == guest_port.to_string() =>
            {
                host.parse().ok()
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_read_from_the_table() {
        let table = "Hub -1 (n0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
             TCP[HOST_FORWARD]   8       127.0.0.1 40685       10.0.2.15    80     0     0\r\n  \
             UDP[HOST_FORWARD]   3       127.0.0.1 37188       10.0.2.15     7     0     0\r\n";
        assert_eq!(forwarded_port(table, "tcp", 80), Some(40685));
        assert_eq!(forwarded_port(table, "udp", 7), Some(37188));
        assert_eq!(forwarded_port(table, "tcp", 7), None);
    }
}
