//! `make run`, mostly without a terminal: the wrapper is started as a user's script would, and judged by its exit status, by
//! what it prints and by what it leaves of the user's files.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vringlet_tests::accelerator::{Kind, obstacle};
use vringlet_tests::cell::{self, Cell, PATIENCE};
use vringlet_tests::console::Console;
use vringlet_tests::disk::{Disk, MIB};
use vringlet_tests::images::FileSystem;
use vringlet_tests::qemu::{PROGRAM, knows};
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
    cells.push(Spec::new("run/window", window).unless(no_window));
    cells.push(Spec::new("run/accelerator/left-open", left_open));
    cells.push(Spec::new("run/accelerator/kvm", on_kvm).unless(super::kvm::unavailable));
    for (name, qemu, chosen) in [
        (
            "comes-up",
            KVM_COMES_UP,
            "KVM with CPU host (a trial guest took ",
        ),
        (
            "dies",
            KVM_DIES,
            "TCG (not KVM with CPU host: the trial guest died: signal 6 killed QEMU: no such register; \
             `ACCEL=kvm` tries another CPU)\n",
        ),
        (
            "hangs",
            KVM_HANGS,
            "TCG (not KVM with CPU host: the trial guest took more than 2 s; `ACCEL=kvm` tries another CPU)\n",
        ),
    ] {
        let body = move |cell: &Cell| with_qemu(cell, qemu, chosen);
        let name = format!("run/accelerator/kvm-{name}");
        cells.push(Spec::new(name, body).unless(|| obstacle(Kind::Kvm)));
    }
    cells
}

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

const WRAPPER: &str = env!("CARGO_BIN_EXE_vringlet-run");

/// Has a command run the wrapper with these settings and no others.
fn settle(command: &mut Command, cell: &Cell, settings: &[(&str, &str)]) -> Result<()> {
    for name in [
        "MACHINE", "MEM", "SMP", "DISK", "SOUND", "PORT", "SCRIPT", "CMDLINE", "ARGS", "TIMEOUT",
        "ACCEL", "CPU",
    ] {
        command.env_remove(name);
    }
    command.env("TIMEOUT", "80");
    command.env("RUN_FOLDER", cell.directory());
    let accelerator = &cell::accelerator()?.accelerator;
    command.env("ACCEL", accelerator.options());
    command.envs(accelerator.cpu().map(|cpu| ("CPU", cpu)));
    command.envs(settings.iter().copied());
    Ok(())
}

/// Starts the wrapper with these settings and no others. Its output is kept beside the cell's other files.
fn run(cell: &Cell, settings: &[(&str, &str)]) -> Result<Run> {
    let mut command = Command::new(WRAPPER);
    settle(&mut command, cell, settings)?;
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
        command.args(["-q", "-e", "-c", WRAPPER, "/dev/null"]);
        for name in ["NO_COLOR", "DISPLAY", "WAYLAND_DISPLAY"] {
            command.env_remove(name);
        }
        settle(&mut command, cell, settings)?;
        command.env("DISK", disk.path()).env("SOUND", "none");
        command.env("SCRIPT", "terminal; nothing; poweroff");
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

/// What the cell with a window needs, if it is missing. (GTK's window gets its size from a window manager, and there is none.)
fn no_window() -> Option<String> {
    let has = |program: &str| Command::new(program).arg("-help").output().is_ok();
    if !has("Xvfb") || !has("xdotool") {
        return Some("no Xvfb or xdotool, which are Debian's packages xvfb and xdotool".into());
    }
    match knows("-display", "sdl") {
        Ok(true) => None,
        _ => Some("no window by SDL, which is in Debian's qemu-system-gui".into()),
    }
}

/// With a display the guest's screen is in a window that is as large as it, and follows its size from then on.
fn window(cell: &Cell) -> Result<()> {
    let display = Display::open()?;
    // A terminal, as the user has.
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", WRAPPER, "/dev/null"]);
    let disk = Disk::create(cell.file("disk.img"), MIB, 47)?;
    settle(
        &mut command,
        cell,
        &[("DISK", text(disk.path())?), ("DISPLAY", &display.name)],
    )?;
    command.env_remove("WAYLAND_DISPLAY");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
        bail!("no standard streams");
    };
    let mut console = Console::capture(output, input, std::io::sink());
    let mut seen = || -> Result<()> {
        console.wait_for_prompt(PATIENCE)?;
        display.wait_for_window("1280x800")?;
        // As long as QEMU waits until it tells the guest of a window's size, and longer.
        std::thread::sleep(Duration::from_secs(3));
        display.wait_for_window("1280x800")?;
        console.type_line("screen info")?;
        console.expect("display=0 size=1280x800", PATIENCE)?;
        for (width, height, said) in [
            (1500, 1000, "display 0 went from 1280x800 to 1500x1000"),
            (800, 600, "display 0 went from 1500x1000 to 800x600"),
        ] {
            // QEMU gives the window the size of a picture that the guest has just begun to show. A resize that comes before
            // that is undone, and the user does it again.
            let deadline = Instant::now() + PATIENCE;
            display.resize(width, height)?;
            while console.expect(said, Duration::from_secs(3)).is_err() {
                ensure!(Instant::now() < deadline, "never said: {said}");
                display.resize(width, height)?;
            }
        }
        console.wait_for_prompt(PATIENCE)?;
        console.type_line("poweroff")
    };
    let seen = seen();
    console.save(&cell.file("serial.log"))?;
    if seen.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    seen?;
    ensure!(status.success(), "`make run` ended with {status}");
    disk.check()
}

/// A display that nobody looks at. It goes with this value.
struct Display {
    server: Child,
    name: String,
}

impl Display {
    fn open() -> Result<Self> {
        let mut server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "Xvfb", "-displayfd", "1"])
            .args(["-screen", "0", "2000x1400x24", "-nolisten", "tcp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting Xvfb by setpriv")?;
        let mut number = String::new();
        let output = server.stdout.as_mut().context("Xvfb's output")?;
        // It says this when it listens.
        BufReader::new(output).read_line(&mut number)?;
        let name = format!(":{}", number.trim());
        Ok(Self { server, name })
    }

    /// Tells xdotool to find QEMU's window and do something with it. Gives what it says.
    fn with_window(&self, words: &[&str]) -> Result<String> {
        let found = Command::new("xdotool")
            .env("DISPLAY", &self.name)
            .args(["search", "--onlyvisible", "--name", "QEMU"])
            .args(words)
            .output()?;
        Ok(String::from_utf8_lossy(&found.stdout).into_owned())
    }

    /// Waits until the window is so large.
    fn wait_for_window(&self, size: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.with_window(&["getwindowgeometry"])?;
            if said.contains(&format!("Geometry: {size}")) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no window of {size}: {said:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn resize(&self, width: u32, height: u32) -> Result<()> {
        let (width, height) = (width.to_string(), height.to_string());
        self.with_window(&["windowsize", &width, &height]).map(drop)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// With nothing said, the guest runs on whatever is found to work here, and that is told.
fn left_open(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 47)?;
    let settings = [
        ("ACCEL", "auto"),
        ("DISK", text(disk.path())?),
        ("SCRIPT", "echo fine"),
    ];
    let run = run(cell, &settings)?;
    run.succeeded()?;
    run.said("run: accelerator ")?;
    run.said("fine")
}

/// On KVM in earnest, as the user says.
fn on_kvm(cell: &Cell) -> Result<()> {
    let accelerator = super::kvm::on_kvm()?;
    let disk = Disk::create(cell.file("disk.img"), MIB, 48)?;
    let settings = [
        ("ACCEL", accelerator.options()),
        ("CPU", accelerator.cpu().unwrap_or_default()),
        ("DISK", text(disk.path())?),
        ("SCRIPT", "blk hash blk0 0 8"),
        // Where the guest's kernel is emulated, a store takes a minute to be made.
        ("CMDLINE", "store=none"),
        ("TIMEOUT", "300"),
    ];
    let run = run(cell, &settings)?;
    run.succeeded()?;
    run.said(&format!("run: accelerator {accelerator}\n"))?;
    run.said("sha256=")?;
    disk.check()
}

/// A machine whose KVM works: TCG stands in for it.
const KVM_COMES_UP: &str = r#"
for word; do
    shift
    case $word in kvm) word=tcg ;; host) word=max ;; esac
    set -- "$@" "$word"
done
"#;
/// One whose KVM does not let QEMU set up the processor.
const KVM_DIES: &str = r#"
case " $* " in *" -accel kvm "*)
    echo "qemu-system-x86_64: no such register" >&2
    echo "and more" >&2
    kill -ABRT $$
esac
"#;
/// One that is so slow that it might as well not run at all.
const KVM_HANGS: &str = r#"case " $* " in *" -accel kvm "*) exec sleep 600 ;; esac
"#;

/// QEMU is started by this script, as on a machine where it behaves like that.
fn with_qemu(cell: &Cell, script: &str, chosen: &str) -> Result<()> {
    let programs = cell.file("bin");
    std::fs::create_dir(&programs)?;
    let (qemu, log) = (programs.join(PROGRAM), cell.file("qemu.log"));
    let path = std::env::var("PATH")?;
    // What is started notes what it was told, becomes QEMU itself, and is not found a second time.
    let text_of = format!(
        "#!/bin/sh\necho \"$*\" >>'{}'\n{script}\nPATH='{path}' exec {PROGRAM} \"$@\"\n",
        text(&log)?
    );
    std::fs::write(&qemu, text_of)?;
    std::fs::set_permissions(&qemu, PermissionsExt::from_mode(0o755))?;
    let disk = Disk::create(cell.file("disk.img"), MIB, 49)?;
    let path = format!("{}:{path}", text(&programs)?);
    let settings = [
        ("ACCEL", "auto"),
        ("PATH", &path),
        ("DISK", text(disk.path())?),
        ("SCRIPT", "echo fine"),
    ];
    let run = run(cell, &settings)?;
    run.succeeded()?;
    run.said(&format!("run: accelerator {chosen}"))?;
    run.said("fine")?;
    let log = std::fs::read_to_string(&log)?;
    let last = log.lines().last().context("QEMU was never started")?;
    let kind = chosen.split(' ').next().unwrap_or_default().to_lowercase();
    ensure!(
        last.contains(&format!(" -accel {kind} ")),
        "the guest was started by {last:?}"
    );
    Ok(())
}
