//! `make run`: boots the guest with a disk, a network, a screen, sound, persistent memory and the serial console on this
//! terminal.
//!
//! Everything comes by environment variables, an empty one counting as unset: `MACHINE`, `MEM`, `SMP`, `DISK`, `SOUND`,
//! `PORT`, `SCRIPT`, `CMDLINE`, `ARGS`, `ACCEL`, `CPU` (see `make help`), `TIMEOUT` (seconds) and `RUN_FOLDER` (where the
//! demonstration disk, the persistent memory and what is heard are; `target/` unless given). `TERM` and `NO_COLOR` mean what
//! they mean everywhere.
//!
//! When standard input is no terminal the guest runs the script (a tour unless given) strictly and powers off, and the
//! exit status tells whether all of it went well.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vringlet_tests::accelerator::{self, Wish};
use vringlet_tests::cell;
use vringlet_tests::demo;
use vringlet_tests::disk::SECTOR;
use vringlet_tests::guest::{End, Guest, Process};
use vringlet_tests::qemu::{
    Format, GPU, Image, Machine, Qemu, SCREENSHOT_SOCKET, escape, knows, utf8,
};
use vringlet_tests::{project_root, setting};

/// The demonstration disk, the persistent memory, and what is heard where nothing plays it.
const DEMO_DISK: &str = "demo.img";
const MEMORY: &str = "pmem.img";
const MEMORY_BYTES: u64 = 16 << 20;
const HEARD: &str = "sound.wav";
/// How much address space there is for memory and persistent memory together: all that a processor of 36 bits has.
const MAX_MEMORY: &str = "32G";
/// The tour after the self-check: what is on the demonstration disk is read, shown and heard, and a recording is left there.
const DEMO_TOUR: &str = "ls; cat welcome.txt; screen show picture.png; sound play melody.wav; \
     sound record 1 recording.wav; ls; screen dashboard";
/// Ends what the guest's prompt asks of a terminal: to mark what is pasted.
const MARK_NO_PASTES: &str = "\x1b[?2004l";
const DEFAULT_PORT: u16 = 8080;
const WEB: u16 = 80;
/// How long the tour may take; a guest without a terminal must not run for ever.
const DEFAULT_TIMEOUT: u64 = 300;

fn main() -> ExitCode {
    match run() {
        Ok((End::PowerOff | End::Quit, _)) => ExitCode::SUCCESS,
        Ok((end, reason)) => {
            eprintln!("run: {end}{reason}");
            match end {
                End::DebugExit(value) => ExitCode::from(value),
                _ => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            eprintln!("run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the guest to its end; says how it ended and what it said about that.
fn run() -> Result<(End, String)> {
    let kernel = cell::guest()?;
    let machine: Machine = setting("MACHINE").as_deref().unwrap_or("q35").parse()?;
    let mut qemu = Qemu::new(&machine, &kernel)?;
    qemu.arg("-smp", setting("SMP").as_deref().unwrap_or("1"));
    let home = path_setting("RUN_FOLDER").unwrap_or_else(|| project_root().join("target"));
    let own_disk = path_setting("DISK");
    let (disk, image) = match &own_disk {
        Some(path) => users_disk(path)?,
        None => (demo_disk(&home)?, Image::RAW),
    };
    qemu.drive("disk0", &disk, image)?;
    qemu.virtio("blk", "blk0", "drive=disk0");
    let kept = memory(&mut qemu, &home)?;
    let on_terminal = std::io::stdin().is_terminal();
    cmdline(&mut qemu, kept, on_terminal);

    let wanted = match setting("PORT") {
        Some(text) => text
            .parse()
            .with_context(|| format!("PORT={text} is no port number"))?,
        None => DEFAULT_PORT,
    };
    qemu.user_net("net0", &[]);
    qemu.virtio("net", "nic0", "netdev=net0");

    let more = setting("ARGS").unwrap_or_default();
    let more =
        shlex::split(&more).with_context(|| format!("ARGS={more}: a quote is not closed"))?;
    accelerate(&mut qemu, &kernel, &more)?;

    let script = setting("SCRIPT");
    screen(&mut qemu, on_terminal)?;
    sound(&mut qemu, &home, on_terminal)?;
    qemu.script(&match (script, on_terminal) {
        (script, true) => script.unwrap_or_default(),
        (Some(script), false) => format!("strict; {script}; poweroff"),
        (None, false) => {
            let mut tour = vec!["strict", "selftest"];
            if own_disk.is_none() && demo::is_whole(&disk) {
                tour.push(DEMO_TOUR);
            }
            if kept {
                tour.push("store");
            }
            tour.push("poweroff");
            tour.join("; ")
        }
    });

    if on_terminal {
        qemu.args(more);
        qemu.serial_on_terminal();
        let mut process =
            Process::start(&qemu, Stdio::inherit(), Stdio::inherit(), Stdio::inherit())?;
        announce(&mut process, wanted)?;
        if own_disk.is_none() {
            eprintln!("run: `ls` and `cat welcome.txt` show what is on the disk");
        }
        eprintln!("run: Ctrl-A X ends the guest");
        process.go()?;
        let end = process.wait(None);
        if terminal().is_some() {
            // A guest that was ended at its prompt had no time to say so.
            print!("{MARK_NO_PASTES}");
            std::io::stdout().flush()?;
        }
        Ok((end?, String::new()))
    } else {
        let timeout = match setting("TIMEOUT") {
            Some(text) => text
                .parse()
                .with_context(|| format!("TIMEOUT={text} is no number of seconds"))?,
            None => DEFAULT_TIMEOUT,
        };
        qemu.args(more);
        let mut guest = Guest::start(qemu, std::io::stdout())?;
        announce(&mut guest.process, wanted)?;
        guest.process.go()?;
        let end = guest.process.wait(Some(Duration::from_secs(timeout)))?;
        guest.console.wait_closed(Duration::from_secs(5));
        let lines = guest.console.lines();
        let error = lines
            .iter()
            .rev()
            .find(|line| line.text.starts_with("error: "));
        Ok((
            end,
            error
                .map(|line| format!(": {}", line.text))
                .unwrap_or_default(),
        ))
    }
}

/// An environment variable that says something, as a path.
fn path_setting(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// Chooses what executes the guest's instructions, unless QEMU is told in the user's own words, and says so.
fn accelerate(qemu: &mut Qemu, kernel: &Path, more: &[String]) -> Result<()> {
    let accel = setting("ACCEL");
    let cpu = setting("CPU");
    let machine = qemu.machine().clone();
    if !accelerator::is_named(&machine.to_string(), more) {
        let wish = Wish::new(accel.as_deref().unwrap_or("auto"), cpu)?;
        let choice = wish.choose(&machine, kernel)?;
        eprintln!("run: accelerator {choice}");
        choice.accelerator.plug(qemu);
        return Ok(());
    }
    // QEMU would take the first of two.
    if let Some(accel) = accel {
        bail!("ACCEL={accel}, and MACHINE or ARGS name an accelerator as well");
    }
    eprintln!("run: accelerator as MACHINE or ARGS have it");
    if let Some(cpu) = cpu {
        qemu.arg("-cpu", &cpu);
    }
    Ok(())
}

/// A graphics adapter, seen in a window, or by VNC where there can't be one; the tour has nobody who looks.
fn screen(qemu: &mut Qemu, on_terminal: bool) -> Result<()> {
    qemu.virtio("gpu", GPU, "");
    if !on_terminal {
        return Ok(());
    }
    let vnc = project_root().join("target/screen.vnc");
    match window() {
        Some(kind) => qemu.window(kind),
        None if qemu.vnc(&vnc)? => {
            eprintln!("run: VNC clients see the screen at unix:{}", vnc.display())
        }
        None => eprintln!("run: no VNC: the path of this folder is too long for a socket"),
    }
    if qemu.control(&project_root().join(SCREENSHOT_SOCKET))? {
        eprintln!("run: `make screenshot` writes target/screenshot.png");
    }
    Ok(())
}

/// Memory, and persistent memory where the machine has a place for it. Says whether it has.
fn memory(qemu: &mut Qemu, home: &Path) -> Result<bool> {
    let bytes = setting("MEM").unwrap_or_else(|| "256M".into());
    // microvm takes the device and maps it nowhere.
    let machine = qemu.machine().to_string();
    let has_place = machine.starts_with("q35") || machine.starts_with("pc");
    // What says more than a size says all that there is to say.
    if !has_place || bytes.contains(',') {
        qemu.arg("-m", &bytes);
        return Ok(false);
    }
    qemu.arg("-m", &format!("{bytes},maxmem={MAX_MEMORY}"));
    let file = home.join(MEMORY);
    if !file.exists() {
        File::create_new(&file)
            .and_then(|file| file.set_len(MEMORY_BYTES))
            .with_context(|| format!("making {}", file.display()))?;
    }
    qemu.persistent_memory("pmem0", &file, "")?;
    Ok(true)
}

/// The guest's options: the user's, and unless the user says, where the guest keeps what it remembers, and what shows what
/// it prints.
fn cmdline(qemu: &mut Qemu, kept: bool, on_terminal: bool) {
    let mut options = setting("CMDLINE").unwrap_or_default();
    let mut unless_said = |name: &str, value: Option<&str>| {
        let said = options
            .split_whitespace()
            .any(|option| option.split('=').next() == Some(name));
        if let Some(value) = value.filter(|_| !said) {
            options = format!("{options} {name}={value}").trim_start().to_string();
        }
    };
    unless_said("store", kept.then_some("pmem0"));
    unless_said("terminal", terminal().filter(|_| on_terminal));
    qemu.cmdline(&options);
}

/// What kind of terminal shows standard output, as the guest calls it, if one does that knows more than to print.
fn terminal() -> Option<&'static str> {
    let kind = setting("TERM").filter(|kind| kind != "dumb");
    kind.filter(|_| std::io::stdout().is_terminal())?;
    // https://no-color.org
    let colorless = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Some(if colorless { "plain" } else { "color" })
}

/// A sound card: on the audio system of this machine where somebody listens; else what is played goes to a file. A file
/// can't be recorded from, so that there is a second card then, which records silence.
fn sound(qemu: &mut Qemu, home: &Path, on_terminal: bool) -> Result<()> {
    let system = match setting("SOUND") {
        Some(system) => system,
        None if on_terminal => audio_system().unwrap_or("wav").to_string(),
        None => "wav".to_string(),
    };
    if system != "wav" {
        qemu.arg("-audiodev", &format!("{system},id=audio0"));
        qemu.virtio("sound", "snd0", "audiodev=audio0");
        return Ok(());
    }
    let file = home.join(HEARD);
    let path = escape(utf8(&file)?);
    qemu.arg(
        "-audiodev",
        &format!("wav,id=audio0,path={path},out.frequency=48000"),
    );
    qemu.virtio("sound", "snd0", "audiodev=audio0,streams=1");
    qemu.arg("-audiodev", "none,id=audio1");
    qemu.virtio("sound", "snd1", "audiodev=audio1");
    eprintln!("run: what the guest plays goes to {}", shown(&file));
    Ok(())
}

/// The audio system of this session, if there is one that QEMU knows.
fn audio_system() -> Option<&'static str> {
    let runtime = PathBuf::from(setting("XDG_RUNTIME_DIR").unwrap_or_default());
    let systems = [
        ("pipewire", runtime.join("pipewire-0").exists()),
        (
            "pa",
            setting("PULSE_SERVER").is_some() || runtime.join("pulse/native").exists(),
        ),
        ("alsa", Path::new("/dev/snd/controlC0").exists()),
    ];
    let mut systems = systems.into_iter().filter(|(_, there)| *there);
    let (system, _) = systems.find(|(name, _)| knows("-audiodev", name).unwrap_or(false))?;
    Some(system)
}

/// A file as it is called from the project's root.
fn shown(file: &Path) -> String {
    let root = project_root();
    file.strip_prefix(&root)
        .unwrap_or(file)
        .display()
        .to_string()
}

/// The kind of window that QEMU can open here: one that is as large as the guest's screen, which is as large as the user makes
/// the window. SDL's is. GTK's opens with 640x480 and has the guest follow that, unless it is told not to fit the screen into
/// the window; then it can be made larger, and not smaller again.
fn window() -> Option<&'static str> {
    setting("WAYLAND_DISPLAY").or_else(|| setting("DISPLAY"))?;
    let kinds = [("sdl", "sdl"), ("gtk", "gtk,zoom-to-fit=off")];
    let mut kinds = kinds.into_iter();
    let (_, options) = kinds.find(|(kind, _)| knows("-display", kind).unwrap_or(false))?;
    Some(options)
}

/// Leads a port of this machine to the guest's page, the wanted one if it is free, and says which.
fn announce(process: &mut Process, wanted: u16) -> Result<()> {
    if !process.qmp.forward("net0", "tcp", wanted, WEB)? {
        ensure!(
            process.qmp.forward("net0", "tcp", 0, WEB)?,
            "no port leads to the guest's page"
        );
        let port = process.qmp.forwarded_port("tcp", WEB)?;
        eprintln!("run: port {wanted} is busy, using {port}");
    }
    let port = process.qmp.forwarded_port("tcp", WEB)?;
    eprintln!("run: http://127.0.0.1:{port}/ is the guest's page");
    Ok(())
}

/// The demonstration disk, made when it is missing.
fn demo_disk(home: &Path) -> Result<PathBuf> {
    let path = home.join(DEMO_DISK);
    if !path.exists() {
        eprintln!("run: making the demonstration disk, {}", shown(&path));
        demo::make(&path)?;
    }
    Ok(path)
}

/// The user's own disk, taken as it is, and how it is attached.
fn users_disk(path: &Path) -> Result<(PathBuf, Image)> {
    let name = path.display();
    let image = inspect(path).with_context(|| format!("DISK={name}"))?;
    if image.read_only {
        eprintln!("run: DISK={name} is read-only here, so it is for the guest");
    }
    // An absolute path: the name is never taken for an option.
    Ok((
        path.canonicalize()
            .with_context(|| format!("DISK={name}"))?,
        image,
    ))
}

/// Finds out how the user's file can be attached, without changing it.
fn inspect(path: &Path) -> Result<Image> {
    let metadata = path.metadata()?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        bail!("is neither a file nor a block device");
    }
    let mut magic = [0; 4];
    let mut file = File::open(path)?;
    if metadata.is_file() && metadata.len() < SECTOR as u64 {
        bail!("has {} bytes, not even one sector", metadata.len());
    }
    file.read_exact(&mut magic)?;
    let format = if &magic == b"QFI\xfb" {
        Format::Qcow2
    } else {
        Format::Raw
    };
    if metadata.is_file() && format == Format::Raw && metadata.len() % SECTOR as u64 != 0 {
        bail!(
            "has {} bytes, not a whole number of sectors",
            metadata.len()
        );
    }
    // Root may write to a file whose owner said that nobody shall.
    let read_only =
        metadata.permissions().readonly() || OpenOptions::new().write(true).open(path).is_err();
    Ok(Image { format, read_only })
}
