//! `make run` without a terminal: the wrapper is started as a user's script would, and judged by its exit status, by
//! what it prints and by what it leaves of the user's files.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::Cell;
use vringlet_tests::disk::{Disk, MIB};
use vringlet_tests::images::FileSystem;
use vringlet_tests::sound::{compare, encode, read_wav, tone};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "pc", "microvm", "microvm,pcie=on"] {
        cells.push(Spec::new(format!("run/tour/{machine}"), move |cell| {
            tour(cell, machine)
        }));
    }
    cells.push(Spec::new("run/demonstration", demonstration));
    cells.push(Spec::new("run/read-only-disk", read_only_disk));
    cells.push(Spec::new("run/bad-disk", bad_disk));
    cells.push(Spec::new("run/busy-port", busy_port));
    cells.push(Spec::new("run/script", script));
    cells.push(Spec::new("run/terminal", terminal));
    cells.push(Spec::new("run/bad-arguments", bad_arguments));
    cells.push(Spec::new("run/hanging-guest", hanging_guest));
    cells
}

/// What the wrapper takes from its environment.
const SETTINGS: [&str; 10] = [
    "MACHINE", "MEM", "SMP", "DISK", "SOUND", "PORT", "SCRIPT", "CMDLINE", "ARGS", "TIMEOUT",
];

/// How the wrapper ended and what it printed, on both streams.
struct Run {
    status: Option<i32>,
    output: String,
}

impl Run {
    fn said(&self, text: &str) -> Result<()> {
        ensure!(
            self.output.contains(text),
            "`make run` did not say {text:?}: {}",
            self.output
        );
        Ok(())
    }

    fn succeeded(&self) -> Result<()> {
        ensure!(
            self.status == Some(0),
            "`make run` ended with {:?}: {}",
            self.status,
            self.output
        );
        Ok(())
    }

    /// It failed, and not by running into the cell's time bound.
    fn failed(&self, reason: &str) -> Result<()> {
        ensure!(
            self.status.is_some_and(|status| status != 0),
            "`make run` ended with {:?}",
            self.status
        );
        self.said(reason)
    }
}

/// Starts the wrapper with these settings and no others. Its output is kept beside the cell's other files.
fn run(cell: &Cell, settings: &[(&str, &str)]) -> Result<Run> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vringlet-run"));
    for name in SETTINGS {
        command.env_remove(name);
    }
    command.env("TIMEOUT", "80").envs(settings.iter().copied());
    command.env("RUN_FOLDER", cell.directory());
    let (mut reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    // The command holds the pipe's other ends: without this the reading would never end.
    drop(command);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    let output = String::from_utf8_lossy(&bytes).into_owned();
    std::fs::write(cell.file("serial.log"), &output)?;
    Ok(Run {
        status: child.wait()?.code(),
        output,
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// A user's own disk, under a name that QEMU could misread, is as it was after the tour.
fn tour(cell: &Cell, machine: &str) -> Result<()> {
    let disk = Disk::create(cell.file("my disk, the:second=one.img"), 16 * MIB, 42)?;
    let run = run(cell, &[("MACHINE", machine), ("DISK", text(disk.path())?)])?;
    run.succeeded()?;
    run.said("run: http://127.0.0.1:")?;
    run.said("blk0: virtio-blk at ")?;
    run.said("net0: virtio-net at ")?;
    run.said("net0: address 10.0.2.15/24")?;
    disk.check()
}

/// With nothing said, twice: the disk that is made is read, shown and heard, what is recorded is left there, and the
/// persistent memory counts.
fn demonstration(cell: &Cell) -> Result<()> {
    for boot in 1..=2 {
        let run = run(cell, &[])?;
        run.succeeded()?;
        run.said("snd0: virtio-sound at ")?;
        run.said("pmem0: virtio-pmem at ")?;
        run.said("gpu0: 1280x800 drawn")?;
        run.said("picture=1280x800 transferred=4096000")?;
        run.said("recorded s16 48000 Hz 2 channels: frames=48000")?;
        run.said(&format!("boots={boot} "))?;
        let heard = read_wav(&cell.file("sound.wav"))?;
        // The self-check's tone, then the file.
        let tone = tone(440, 48000, 2, 12000).flat_map(|it| encode("s16", it));
        let tone: Vec<u8> = tone.collect();
        let fat = FileSystem::Fat(16);
        let image = cell.file("demo.img");
        let melody = fat.read(&image, "melody.wav")?;
        compare(&heard, &[tone, melody[44..].to_vec()].concat())?;
        fat.check(&image)?;
        let recorded = fat.read(&image, "recording.wav")?;
        ensure!(recorded.len() == 44 + 4 * 48000, "{} bytes", recorded.len());
    }
    Ok(())
}

/// A file that its owner protects is attached read-only, root or not, and the tour still ends well.
fn read_only_disk(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), 4 * MIB, 43)?;
    std::fs::set_permissions(disk.path(), PermissionsExt::from_mode(0o444))?;
    let run = run(cell, &[("DISK", text(disk.path())?)])?;
    run.succeeded()?;
    run.said("is read-only here")?;
    disk.check()
}

/// What can't be a disk gets one clear line, and no guest.
fn bad_disk(cell: &Cell) -> Result<()> {
    let (empty, odd) = (cell.file("empty.img"), cell.file("odd.img"));
    std::fs::write(&empty, b"")?;
    std::fs::write(&odd, vec![0; 1000])?;
    let missing = cell.file("missing.img");
    let folder = cell.file("folder");
    std::fs::create_dir(&folder)?;
    for (path, reason) in [
        (&missing, "No such file"),
        (&folder, "neither a file nor a block device"),
        (&empty, "not even one sector"),
        (&odd, "not a whole number of sectors"),
    ] {
        let run = run(cell, &[("DISK", text(path)?)])?;
        run.failed(reason)?;
        ensure!(
            run.output.trim_end().lines().count() == 1,
            "more than one line: {}",
            run.output
        );
    }
    ensure!(!missing.exists(), "the missing disk was made");
    ensure!(
        std::fs::read(&empty)?.is_empty() && std::fs::read(&odd)?.len() == 1000,
        "a file was changed"
    );
    Ok(())
}

fn busy_port(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 44)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let settings = [
        ("PORT", port.to_string()),
        ("DISK", text(disk.path())?.to_string()),
    ];
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let run = run(cell, &[&settings[..], &[("SCRIPT", "echo fine")]].concat())?;
    run.succeeded()?;
    run.said(&format!("port {port} is busy, using "))?;
    ensure!(
        !run.output.contains(&format!("127.0.0.1:{port}/")),
        "the busy port is given as the page's address"
    );
    run.said("fine")
}

/// A script's commands are run strictly, with a comma and an equals sign in them, and the guest is powered off.
fn script(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 45)?;
    let path = text(disk.path())?;
    let good = run(
        cell,
        &[
            ("DISK", path),
            ("SCRIPT", "echo one, two=2; blk info blk0"),
            ("SMP", "2"),
            ("MEM", "96M"),
        ],
    )?;
    good.succeeded()?;
    good.said("one, two=2")?;
    good.said("capacity_sectors=2048")?;
    let bad = run(
        cell,
        &[("DISK", path), ("SCRIPT", "blk read blk7 0; echo never")],
    )?;
    bad.failed("a command of the script failed (exit value 0x13): error: ")?;
    ensure!(
        bad.status == Some(0x13),
        "the exit status is {:?}",
        bad.status
    );
    let panic = run(cell, &[("DISK", path), ("SCRIPT", "panic")])?;
    panic.failed("the kernel panicked")?;
    disk.check()
}

/// On a terminal the guest knows that there is one, and uses colors unless they are not wanted; the user has the last word.
/// `script` is the terminal.
fn terminal(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 47)?;
    const RED: &[u8] = b"\x1b[1m\x1b[31merror:\x1b[0m no command nothing";
    const PLAIN: &[u8] = b"\nerror: no command nothing";
    for (settings, kind, error) in [
        (&[("TERM", "xterm")][..], "color", RED),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], "color", RED),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], "plain", PLAIN),
        (&[("TERM", "dumb")], "none", PLAIN),
        (
            &[("TERM", "xterm"), ("CMDLINE", "terminal=plain")],
            "plain",
            PLAIN,
        ),
    ] {
        let mut command = Command::new("script");
        command.args([
            "-q",
            "-e",
            "-c",
            env!("CARGO_BIN_EXE_vringlet-run"),
            "/dev/null",
        ]);
        for name in SETTINGS
            .iter()
            .chain(&["NO_COLOR", "DISPLAY", "WAYLAND_DISPLAY"])
        {
            command.env_remove(name);
        }
        command.envs(settings.iter().copied());
        command.env("DISK", disk.path()).env("SOUND", "none");
        command.env("SCRIPT", "terminal; nothing; poweroff");
        command.env("RUN_FOLDER", cell.directory());
        // Nobody types: what is typed is still to come.
        let (nothing, _open) = std::io::pipe()?;
        let output = command.stdin(nothing).output()?;
        std::fs::write(cell.file("serial.log"), &output.stdout)?;
        ensure!(output.status.success(), "{}", output.status);
        let shown = |text: &[u8]| output.stdout.windows(text.len()).any(|it| it == text);
        let kind = format!("\nterminal: {kind}\r");
        ensure!(shown(kind.as_bytes()), "not {kind:?} with {settings:?}");
        ensure!(shown(error), "another error with {settings:?}");
        // The terminal is left as it was, whoever ends the guest.
        let restored = output.stdout.ends_with(b"\x1b[?2004l");
        ensure!(restored != kind.contains("none"), "{settings:?}");
    }
    Ok(())
}

fn bad_arguments(cell: &Cell) -> Result<()> {
    for (name, value, reason) in [
        ("MACHINE", "isapc", "none of q35, pc, microvm"),
        ("MEM", "much", "QEMU failed"),
        ("PORT", "web", "no port number"),
        ("ARGS", "-device 'unclosed", "a quote is not closed"),
        ("ARGS", "-device no-such-device", "QEMU failed"),
        ("TIMEOUT", "soon", "no number of seconds"),
    ] {
        run(cell, &[(name, value)])?.failed(reason)?;
    }
    Ok(())
}

/// A guest that never comes to an end is ended.
fn hanging_guest(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 46)?;
    let settings = [
        ("DISK", text(disk.path())?),
        ("SCRIPT", "sleep 1000000"),
        ("TIMEOUT", "5"),
    ];
    run(cell, &settings)?.failed("did not end within 5 s")
}
