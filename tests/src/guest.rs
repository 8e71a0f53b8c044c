//! A running guest: its console, its end, and what the end means.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::console::Console;
use crate::qemu::{self, Qemu};
use crate::qmp::Qmp;

/// How long QEMU may take from its start to answering on its control socket.
const START_BOUND: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It powered the machine off.
    PowerOff,
    /// It reset the machine, on purpose or by a triple fault.
    Reset,
    /// Somebody ended QEMU from outside: the monitor, a signal it handles.
    Quit,
    /// It wrote this value to the debug exit port.
    DebugExit(u8),
    /// QEMU itself failed and said this.
    QemuFailed(String),
    /// A signal killed QEMU, and this is what QEMU said.
    Killed(i32, String),
}

impl End {
    /// The kernel was not started: the boot loader could not, or the kernel has too little memory.
    pub const BOOT_FAILED: End = End::DebugExit(0x10);
    /// The kernel panicked.
    pub const PANIC: End = End::DebugExit(0x11);
    /// A fatal processor exception.
    pub const EXCEPTION: End = End::DebugExit(0x12);
    /// A command of a strict script failed.
    pub const SCRIPT_FAILED: End = End::DebugExit(0x13);

    pub(crate) fn new(status: ExitStatus, shutdown_reason: &str, stderr: &str) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) if shutdown_reason == "guest-reset" => End::Reset,
            (Some(0), _) if shutdown_reason.starts_with("host-") => End::Quit,
            (Some(0), _) => End::PowerOff,
            // isa-debug-exit makes (value << 1) | 1 of what is written; 1 alone is QEMU's own failure.
            (Some(code @ 3..=0xff), _) if code % 2 == 1 => End::DebugExit((code >> 1) as u8),
            (_, Some(signal)) => End::Killed(signal, stderr.trim().to_string()),
            _ => End::QemuFailed(stderr.trim().to_string()),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::PowerOff => write!(f, "the guest powered off"),
            End::Reset => write!(f, "the guest reset the machine"),
            End::Quit => write!(f, "QEMU was told to quit"),
            &End::BOOT_FAILED => write!(f, "the kernel was not started (exit value 0x10)"),
            &End::PANIC => write!(f, "the kernel panicked (exit value 0x11)"),
            &End::EXCEPTION => write!(f, "a fatal exception in the kernel (exit value 0x12)"),
            &End::SCRIPT_FAILED => write!(f, "a command of the script failed (exit value 0x13)"),
            End::DebugExit(value) => write!(f, "the guest exited with {value}"),
            End::QemuFailed(text) if text.is_empty() => write!(f, "QEMU failed"),
            End::QemuFailed(text) => write!(f, "QEMU failed: {text}"),
            End::Killed(signal, text) if text.is_empty() => {
                write!(f, "signal {signal} killed QEMU")
            }
            End::Killed(signal, text) => write!(f, "signal {signal} killed QEMU: {text}"),
        }
    }
}

/// The command that becomes QEMU, and dies with this program.
pub(crate) fn command(qemu: &Qemu) -> Command {
    // `setpriv` replaces itself by QEMU and so keeps the process id.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args(qemu.prefix())
        .arg(qemu::PROGRAM)
        .args(qemu.arguments());
    command
}

/// A QEMU process with its control socket. It dies with this value, or with this program.
pub struct Process {
    child: Child,
    /// QEMU's control socket.
    pub qmp: Qmp,
    stderr: Option<JoinHandle<String>>,
    stderr_text: String,
}

impl Process {
    /// Starts QEMU with these standard streams. The guest does not run before [`Process::go`].
    pub fn start(qemu: &Qemu, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Self> {
        // Not in the cell's directory: the path of a socket may have 107 bytes and no more.
        let sockets = tempfile::Builder::new()
            .prefix("vringlet-")
            .tempdir()
            .context("a directory for QEMU's socket")?;
        let path = sockets.path().join("qmp");
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("listening on {}", path.display()))?;
        listener.set_nonblocking(true)?;

        let mut command = command(qemu);
        command.arg("-S");
        command.args([
            "-chardev",
            &format!("socket,id=qmp,path={}", qemu::escape(qemu::utf8(&path)?)),
        ]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        let mut child = command
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("starting {} by setpriv", qemu::PROGRAM))?;
        let stderr = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = pipe.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });

        let deadline = Instant::now() + START_BOUND;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                    return Err(error).context("QEMU's control socket");
                }
                Err(_) => {}
            }
            if let Some(status) = child.try_wait()? {
                bail!("{}", End::new(status, "", &join(stderr)));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("QEMU did not answer within {} s", START_BOUND.as_secs());
            }
            std::thread::sleep(POLL);
        };
        stream.set_nonblocking(false)?;
        match Qmp::new(stream) {
            Ok(qmp) => Ok(Process {
                child,
                qmp,
                stderr,
                stderr_text: String::new(),
            }),
            // Back ends and devices are made after the monitor: what is wrong with them QEMU says on stderr.
            Err(error) => {
                let _ = child.kill();
                let status = child.wait()?;
                let text = join(stderr);
                if text.is_empty() {
                    Err(error)
                } else {
                    bail!("{}", End::new(status, "", &text))
                }
            }
        }
    }

    /// Lets the guest run.
    pub fn go(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// Lets so many bytes per second be written to a drive from now on; 0 is as many as it can.
    pub fn limit_writes(&mut self, drive: &str, bytes_per_second: u64) -> Result<()> {
        let mut limits = json!({ "device": drive, "bps_wr": bytes_per_second });
        for other in ["bps", "bps_rd", "iops", "iops_rd", "iops_wr"] {
            limits[other] = 0.into();
        }
        self.qmp.execute("block_set_io_throttle", limits).map(drop)
    }

    /// Waits until so many bytes were written to a drive since QEMU started.
    pub fn wait_for_writes(&mut self, drive: &str, bytes: u64, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            let written = self.written(drive)?;
            if written >= bytes {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seconds = bound.as_secs();
                bail!("{written} of {bytes} bytes were written to {drive} within {seconds} s");
            }
            std::thread::sleep(POLL);
        }
    }

    /// How many bytes were written to a drive since QEMU started.
    pub fn written(&mut self, drive: &str) -> Result<u64> {
        self.drive_count(drive, "wr_bytes")
    }

    /// What QEMU counts for a drive since it started, by its name in `query-blockstats`.
    pub fn drive_count(&mut self, drive: &str, name: &str) -> Result<u64> {
        let drives = self.qmp.execute("query-blockstats", json!({}))?;
        let mut drives = drives.as_array().into_iter().flatten();
        let drive = drives.find(|it| it["device"] == drive);
        let count = drive.and_then(|drive| drive["stats"][name].as_u64());
        count.with_context(|| format!("QEMU does not count the drive's {name}"))
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills QEMU, which can do nothing about it, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing QEMU")?;
        self.child.wait().context("waiting for QEMU to be gone")?;
        Ok(())
    }

    /// Waits for the end; without a bound for ever. What runs longer is killed.
    pub fn wait(&mut self, bound: Option<Duration>) -> Result<End> {
        let deadline = bound.map(|bound| Instant::now() + bound);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if let (Some(deadline), Some(bound)) = (deadline, bound)
                && Instant::now() > deadline
            {
                bail!("the guest did not end within {} s", bound.as_secs());
            }
            std::thread::sleep(POLL);
        };
        self.qmp.drain();
        let shutdown = self.qmp.events("SHUTDOWN");
        let reason = shutdown
            .last()
            .and_then(|event| event["data"]["reason"].as_str())
            .unwrap_or_default();
        self.stderr_text = join(self.stderr.take());
        Ok(End::new(status, reason, &self.stderr_text))
    }

    /// What QEMU itself reported on its standard error, if that is captured, once it has ended: a virtio device that
    /// the driver has broken says so there. Libraries that QEMU uses print there too, without its name in front.
    pub fn complaints(&self) -> Vec<&str> {
        let lines = self.stderr_text.lines();
        lines
            .filter(|line| line.starts_with(qemu::PROGRAM))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn join(stderr: Option<JoinHandle<String>>) -> String {
    stderr
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

/// A guest whose serial port is read and typed on by this program. A reset ends it.
pub struct Guest {
    /// The QEMU process.
    pub process: Process,
    /// The serial port.
    pub console: Console,
}

impl Guest {
    /// Starts QEMU; every byte from the serial port goes to `echo` too. The guest does not run before
    /// [`Process::go`].
    pub fn start(mut qemu: Qemu, echo: impl Write + Send + 'static) -> Result<Self> {
        qemu.serial_on_stdio();
        qemu.arg("-action", "reboot=shutdown");
        let mut process = Process::start(&qemu, Stdio::piped(), Stdio::piped(), Stdio::piped())?;
        let (Some(output), Some(input)) = (process.child.stdout.take(), process.child.stdin.take())
        else {
            bail!("QEMU has no standard streams");
        };
        Ok(Guest {
            process,
            console: Console::capture(output, input, echo),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_have_their_meaning() {
        let end =
            |code: i32, reason| End::new(ExitStatus::from_raw(code << 8), reason, "no such file\n");
        assert_eq!(end(0, "guest-shutdown"), End::PowerOff);
        assert_eq!(end(0, "guest-reset"), End::Reset);
        assert_eq!(end(0, "host-qmp-quit"), End::Quit);
        assert_eq!(end(33, ""), End::BOOT_FAILED);
        assert_eq!(end(35, ""), End::PANIC);
        assert_eq!(end(37, ""), End::EXCEPTION);
        assert_eq!(end(39, ""), End::SCRIPT_FAILED);
        assert_eq!(end(7, ""), End::DebugExit(3));
        assert_eq!(end(1, ""), End::QemuFailed("no such file".into()));
        let abort = End::new(ExitStatus::from_raw(6), "", "it was said why\n");
        assert_eq!(abort, End::Killed(6, "it was said why".into()));
        assert_eq!(abort.to_string(), "signal 6 killed QEMU: it was said why");
    }
}
