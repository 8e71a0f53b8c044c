//! Clients of the guest's services, over ports that a user-mode network forwards.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{ECHO, WEB};
use crate::cell::PATIENCE;
use crate::qmp::Qmp;

/// Connects to a forwarded port of the guest.
pub fn connect(port: u16) -> Result<TcpStream> {
    let stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting to the guest")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `bytes` to the TCP echo service while reading what comes back; both must be the same.
pub fn tcp_echo(port: u16, bytes: &[u8]) -> Result<()> {
    let stream = connect(port)?;
    echo_over(&stream, bytes)
}

/// The same over a connection that is already there.
pub fn echo_over(stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            (&*stream)
                .write_all(bytes)
                .context("writing to the TCP echo service")
        });
        let mut back = vec![0; bytes.len()];
        let mut done = 0;
        while done < back.len() {
            match (&*stream).read(&mut back[done..]) {
                Ok(0) => bail!(
                    "the TCP echo service closed after {done} of {} bytes",
                    bytes.len()
                ),
                Ok(count) => done += count,
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("reading TCP echo, {done} of {} bytes", bytes.len())
                    });
                }
            }
        }
        if let Ok(result) = writer.join() {
            result?;
        }
        match back.iter().zip(bytes).position(|(a, b)| a != b) {
            Some(index) => bail!("the TCP echo differs from byte {index} on"),
            None => Ok(()),
        }
    })
}

/// Sends a datagram to the UDP echo service until it comes back, as UDP may lose it. What comes back must be what
/// was sent, at the first answer.
pub fn udp_echo(port: u16, payload: &[u8]) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut back = vec![0; 65536];
    for _ in 0..10 {
        socket
            .send(payload)
            .context("sending to the UDP echo service")?;
        match socket.recv(&mut back) {
            Ok(count) if back[..count] == *payload => return Ok(()),
            Ok(count) => bail!(
                "the UDP echo of {} bytes came back as {count} other ones",
                payload.len()
            ),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("reading UDP echo"),
        }
    }
    bail!("no UDP echo of {} bytes in ten tries", payload.len())
}

/// Has the guest behind a network with [`FORWARDS`](super::FORWARDS) echo so many bytes over TCP, and datagrams of these lengths, and
/// tell of its card on the status page.
pub fn judge_services(qmp: &mut Qmp, tcp_bytes: usize, datagrams: &[usize]) -> Result<()> {
    let (web, tcp, udp) = (
        qmp.forwarded_port("tcp", WEB)?,
        qmp.forwarded_port("tcp", ECHO)?,
        qmp.forwarded_port("udp", ECHO)?,
    );
    let mut random = fastrand::Rng::with_seed(1);
    let mut bytes = |count| -> Vec<u8> {
        let bytes = std::iter::repeat_with(|| random.u8(..));
        bytes.take(count).collect()
    };
    tcp_echo(tcp, &bytes(tcp_bytes))?;
    for length in datagrams {
        udp_echo(udp, &bytes(*length))?;
    }
    let status = status(web)?.to_string();
    ensure!(
        status.contains("net0"),
        "the guest's status does not name its net0: {status}"
    );
    Ok(())
}

/// An answer to an HTTP request.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// Fetches a page with curl.
pub fn curl(url: &str, options: &[&str]) -> Result<Answer> {
    let mut command = Command::new("curl");
    answer(command.args(curl_arguments()).args(options).arg(url))
}

/// The arguments that make curl print what [`answer`] reads.
pub fn curl_arguments() -> [String; 6] {
    let bound = PATIENCE.as_secs().to_string();
    [
        "-sS",
        "--globoff",
        "--max-time",
        &bound,
        "--write-out",
        "\n%{http_code} %{content_type}",
    ]
    .map(String::from)
}

/// Runs a curl with [`curl_arguments`].
pub fn answer(command: &mut Command) -> Result<Answer> {
    let output = command.output().context("starting curl")?;
    ensure!(
        output.status.success(),
        "curl: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout).context("the page is not UTF-8")?;
    let (body, line) = text.rsplit_once('\n').context("curl printed no status")?;
    let (status, content_type) = line.split_once(' ').context("curl printed no status")?;
    Ok(Answer {
        status: status.parse()?,
        content_type: content_type.to_string(),
        body: body.to_string(),
    })
}

/// The guest's state as JSON, from the forwarded port of its web server.
pub fn status(port: u16) -> Result<serde_json::Value> {
    let answer = curl(&format!("http://127.0.0.1:{port}{STATUS}"), &[])?;
    ensure!(answer.status == 200, "{STATUS} answers {}", answer.status);
    ensure!(
        answer.content_type.starts_with("application/json"),
        "{STATUS} is {}",
        answer.content_type
    );
    serde_json::from_str(&answer.body).with_context(|| format!("{STATUS}: {}", answer.body))
}

/// Where the guest serves its state.
pub const STATUS: &str = "/status.json";

/// Sends raw bytes to a TCP service and returns what it answers until it closes or falls silent for `patience`.
pub fn raw_request(port: u16, bytes: &[u8], patience: Duration) -> Result<Vec<u8>> {
    let mut stream = connect(port)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    // The service may well close before it has read all of it.
    let _ = stream.write_all(bytes);
    let deadline = Instant::now() + patience;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    Ok(answer)
}
