//! Devices in processes of their own, which QEMU lends the guest's memory: the daemons of vhost-user.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::project_root;
use crate::qemu::{Qemu, escape, utf8};

/// How long a daemon may take until it listens.
const START_BOUND: Duration = Duration::from_secs(30);
/// How long it may take for anything else.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Where packages describe the daemons that they bring (QEMU's docs/interop/vhost-user.json).
const DESCRIPTIONS: &str = "/usr/share/qemu/vhost-user";

/// Where `scripts/setup.sh` puts the daemon for sound, under the project's root.
const SOUND: &str = "target/tools/bin/vhost-device-sound";
/// And that for random bytes.
const RNG: &str = "target/tools/bin/vhost-device-rng";

/// QEMU's daemon for disks, in Debian's qemu-utils.
const DISK: &str = "qemu-storage-daemon";

/// What a daemon prints, in the cell's directory.
const LOG: &str = "daemon.log";

/// A daemon with its socket. It dies with this value, or with this program.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    _sockets: TempDir,
}

impl Daemon {
    /// QEMU's own for graphics.
    pub fn gpu(directory: &Path) -> Result<Self> {
        let program = gpu_program().context("no vhost-user-gpu here")?;
        let told = |path: &str| vec!["--socket-path".into(), path.into()];
        Self::start(Command::new(program), told, "", directory)
    }

    /// Rust-vmm's for random bytes, which are those of the file at `source`.
    pub fn rng(directory: &Path, source: &Path) -> Result<Self> {
        let mut command = Command::new(project_root().join(RNG));
        command.arg("--rng-source").arg(source);
        let told = |path: &str| vec!["--socket-path".into(), path.into()];
        // It could have several sockets, and numbers them.
        Self::start(command, told, "0", directory)
    }

    /// Rust-vmm's for sound. It plays and records by ALSA, which is configured by the file at `alsa`.
    pub fn sound(directory: &Path, alsa: &Path) -> Result<Self> {
        let mut command = Command::new(project_root().join(SOUND));
        command
            .args(["--backend", "alsa"])
            .env("ALSA_CONFIG_PATH", alsa);
        let told = |path: &str| vec!["--socket".into(), path.into()];
        Self::start(command, told, "", directory)
    }

    /// QEMU's own for disks, with the raw image at `image`.
    pub fn disk(directory: &Path, image: &Path) -> Result<Self> {
        let image = escape(utf8(image)?);
        let mut command = Command::new(DISK);
        command.arg("--blockdev");
        command.arg(format!("driver=file,node-name=d0,filename={image}"));
        let told = |path: &str| {
            let export = "type=vhost-user-blk,id=e0,node-name=d0,writable=on,addr.type=unix";
            vec!["--export".into(), format!("{export},addr.path={path}")]
        };
        Self::start(command, told, "", directory)
    }

    /// Starts the program of `command`, which is told of its socket by the arguments that `told` makes of the path, and waits
    /// until it listens there, or where `suffix` is added to it.
    fn start(
        command: Command,
        told: impl FnOnce(&str) -> Vec<String>,
        suffix: &str,
        directory: &Path,
    ) -> Result<Self> {
        // Not in the cell's directory: the path of a socket may have 107 bytes and no more.
        let sockets = tempfile::Builder::new()
            .prefix("vringlet-")
            .tempdir()
            .context("a directory for a daemon's socket")?;
        let named = sockets.path().join("vhost");
        let socket = sockets.path().join(format!("vhost{suffix}"));
        let log = directory.join(LOG);
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let program = command.get_program().to_owned();
        // `setpriv` replaces itself by the daemon and so keeps the process id.
        let mut started = Command::new("setpriv");
        started.args(["--pdeathsig", "KILL", "--"]).arg(&program);
        started.args(command.get_args()).args(told(utf8(&named)?));
        started.envs(
            command
                .get_envs()
                .filter_map(|(name, it)| Some((name, it?))),
        );
        let child = started
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("a daemon's output")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {} by setpriv", program.display()))?;
        let mut daemon = Self {
            child,
            log,
            socket,
            _sockets: sockets,
        };
        daemon.wait_for_socket()?;
        Ok(daemon)
    }

    /// A daemon takes one connection, QEMU's, so the socket is not tried but looked up.
    fn wait_for_socket(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_BOUND;
        loop {
            let table = std::fs::read_to_string("/proc/net/unix").context("/proc/net/unix")?;
            if listens(&table, utf8(&self.socket)?) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended at once ({status}): {:?}", self.output()?);
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon does not listen after {} s",
                START_BOUND.as_secs()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Adds the device that this daemon is: QEMU's name of it, its id, and further properties, if any.
    pub fn attach(&self, qemu: &mut Qemu, device: &str, id: &str, properties: &str) -> Result<()> {
        let socket = escape(utf8(&self.socket)?);
        qemu.arg("-chardev", &format!("socket,id=daemon-{id},path={socket}"));
        let comma = if properties.is_empty() { "" } else { "," };
        qemu.arg(
            "-device",
            &format!("{device},id={id},chardev=daemon-{id}{comma}{properties}"),
        );
        Ok(())
    }

    /// Has it do nothing until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// Has it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let mut kill = Command::new("kill");
        let status = kill.arg(signal).arg(self.child.id().to_string()).status();
        let status = status.context("starting kill")?;
        ensure!(status.success(), "kill {signal}: {status}");
        Ok(())
    }

    /// What it printed so far.
    pub fn output(&self) -> Result<String> {
        let bytes =
            std::fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has printed this.
    pub fn eventually_says(&self, needle: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.output()?.contains(needle) {
            ensure!(
                Instant::now() < deadline,
                "the daemon never said {needle:?}"
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// All that these daemons print are complaints, and there must be none but lines that contain one of `known`.
    pub fn complains_only_of(&self, known: &[&str]) -> Result<()> {
        let output = self.output()?;
        let complaint = output
            .lines()
            .filter(|line| !line.trim().is_empty())
            .find(|line| !known.iter().any(|known| line.contains(known)));
        match complaint {
            Some(complaint) => bail!("the daemon said: {complaint}"),
            None => Ok(()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody listens at `path`, by the kernel's table of sockets: its columns are number, references, protocol,
/// flags, type, state, inode, path.
fn listens(table: &str, path: &str) -> bool {
    const ACCEPTS_CONNECTIONS: &str = "00010000";
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some(ACCEPTS_CONNECTIONS) && words.nth(3) == Some(path)
    })
}

/// The program that a description says is a daemon for graphics.
fn gpu_program() -> Option<PathBuf> {
    let entries = std::fs::read_dir(DESCRIPTIONS).ok()?;
    let programs = entries.flatten().filter_map(|entry| {
        let description = std::fs::read(entry.path()).ok()?;
        gpu_binary(&description)
    });
    programs.into_iter().find(|program| program.is_file())
}

fn gpu_binary(description: &[u8]) -> Option<PathBuf> {
    let description: Value = serde_json::from_slice(description).ok()?;
    let binary = description["binary"].as_str()?;
    (description["type"] == "gpu" && binary.contains("vhost-user-gpu")).then(|| binary.into())
}

/// Why there is no graphics by vhost-user, if there is none.
pub fn no_gpu() -> Option<String> {
    match gpu_program() {
        Some(_) => None,
        None => Some("no vhost-user-gpu, which is in Debian's qemu-system-gui".into()),
    }
}

/// Why there are no disks by vhost-user, if there are none.
pub fn no_disk() -> Option<String> {
    match Command::new(DISK).arg("--version").output() {
        Ok(_) => None,
        Err(_) => Some(format!("no {DISK}, which is in Debian's qemu-utils")),
    }
}

/// Why there is no sound by vhost-user, if there is none.
pub fn no_sound() -> Option<String> {
    not_built(SOUND)
}

/// Why there are no random bytes by vhost-user, if there are none.
pub fn no_rng() -> Option<String> {
    not_built(RNG)
}

fn not_built(daemon: &str) -> Option<String> {
    match project_root().join(daemon).is_file() {
        true => None,
        false => Some(format!(
            "no {daemon}, which `scripts/setup.sh tests` builds"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_listens_is_told_from_others() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 43530 /tmp/a\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 44688 /tmp/b\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 43531\n";
        assert!(listens(table, "/tmp/a"));
        assert!(!listens(table, "/tmp/b"));
        assert!(!listens(table, "/tmp"));
    }

    #[test]
    fn the_daemon_for_graphics_is_found_by_its_description() {
        let gpu =
            br#"{ "description": "x", "type": "gpu", "binary": "/usr/lib/qemu/vhost-user-gpu" }"#;
        let path = PathBuf::from("/usr/lib/qemu/vhost-user-gpu");
        assert_eq!(gpu_binary(gpu), Some(path));
        assert_eq!(gpu_binary(br#"{ "type": "fs", "binary": "/x" }"#), None);
        assert_eq!(gpu_binary(b"{"), None);
    }

    #[test]
    fn a_daemon_that_cannot_start_says_why() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such thing >&2; exit 3", "sh"]);
        let started = Daemon::start(command, |path| vec![path.into()], "", directory.path());
        let error = format!("{:#}", started.err().context("it started")?);
        assert!(error.contains("no such thing"), "{error}");
        Ok(())
    }
}
