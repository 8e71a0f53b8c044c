//! One named test, and what is kept of it when it fails.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::accelerator::{Accelerator, Choice, Wish};
use crate::console::{Console, Line};
use crate::guest::{End, Guest, Process};
use crate::qemu::{Machine, Qemu};
use crate::terminal::Terminal;
use crate::{project_root, setting};

/// How long the guest may take for any one step. It bounds a hang and judges no speed: the slowest machine that runs
/// two cells at once under emulation must stay well below it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The memory of a guest that no cell wants otherwise.
pub const MEMORY: &str = "128M";

/// What QEMU's or its firmware's own doings put into the log of guest errors, to the letter, with the reason. Nothing
/// that the guest can cause belongs here.
const NOT_THE_GUEST: &[(&str, &str)] = &[
    (
        "virtio_snd: event queue is unimplemented.",
        "the specification has the driver fill that queue (5.14.5), and QEMU says this when there is something in it",
    ),
    (
        "virtio_snd: jack functionality is unimplemented.",
        "QEMU's card says that it has jacks, and this when it is asked for them as the specification has it (5.14.5)",
    ),
    (
        "virtio_snd: chmap info functionality is unimplemented.",
        "the same with channel maps",
    ),
];

/// What QEMU says on KVM of a machine that has fewer processors than the guest, which works all the same.
const MORE_PROCESSORS: &str = " exceeds the recommended cpus supported by KVM ";

const SERIAL_LOG: &str = "serial.log";
const COMMAND_LINE: &str = "qemu.command";
const GUEST_ERRORS: &str = "guest-errors.log";

/// What cells run on unless they say otherwise: what `ACCEL` and `CPU` say, and TCG if they say nothing.
pub fn accelerator() -> Result<&'static Choice> {
    static CHOICE: OnceLock<Result<Choice>> = OnceLock::new();
    let choice = CHOICE.get_or_init(|| {
        let accel = setting("ACCEL");
        Wish::new(accel.as_deref().unwrap_or("tcg"), setting("CPU"))?
            .choose(&"q35".parse()?, &guest()?)
    });
    choice.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// The file that QEMU is to boot.
pub fn guest() -> Result<PathBuf> {
    let kernel = project_root().join("target/guest.elf");
    ensure!(
        kernel.is_file(),
        "target/guest.elf is missing: `make guest` builds it"
    );
    Ok(kernel)
}

/// A test with a name and a directory for its disks, logs and captures: in `target/cells`, its name with dots for slashes. None is
/// inside another, or else the end of one cell would clear what another one is using.
pub struct Cell {
    directory: PathBuf,
}

impl Cell {
    /// Runs one cell. Its directory stays if it fails, without the disk images, or if the environment has `KEEP`.
    pub fn run(name: &str, body: impl FnOnce(&Cell) -> Result<()>) -> Result<()> {
        let folder = format!("target/cells/{}", name.replace('/', "."));
        let cell = Cell {
            directory: project_root().join(&folder),
        };
        if cell.directory.exists() {
            std::fs::remove_dir_all(&cell.directory)
                .with_context(|| format!("clearing {}", cell.directory.display()))?;
        }
        std::fs::create_dir_all(&cell.directory)
            .with_context(|| format!("making {}", cell.directory.display()))?;
        let result = body(&cell);
        match &result {
            Ok(()) if std::env::var_os("KEEP").is_none_or(|keep| keep.is_empty()) => {
                let _ = std::fs::remove_dir_all(&cell.directory);
            }
            Ok(()) => {}
            Err(_) => cell.remove_images(),
        }
        result.with_context(|| format!("kept in {folder}"))
    }

    /// A file of this cell.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A guest with nothing but memory, whose mistakes QEMU logs.
    pub fn qemu(&self, machine: &Machine, memory: &str) -> Result<Qemu> {
        self.qemu_on(&accelerator()?.accelerator, machine, memory)
    }

    /// The same on this accelerator, whatever other cells run on.
    pub fn qemu_on(
        &self,
        accelerator: &Accelerator,
        machine: &Machine,
        memory: &str,
    ) -> Result<Qemu> {
        let mut qemu = Qemu::new(machine, &guest()?)?;
        accelerator.plug(&mut qemu);
        qemu.arg("-m", memory);
        qemu.log_guest_errors(&self.file(GUEST_ERRORS))?;
        Ok(qemu)
    }

    /// Starts the guest and lets it run.
    pub fn boot(&self, qemu: Qemu) -> Result<Booted> {
        self.boot_echoing(qemu, std::io::sink())
    }

    /// Starts the guest with a terminal that shows its serial port.
    pub fn boot_on(&self, terminal: &Terminal, qemu: Qemu) -> Result<Booted> {
        self.boot_echoing(qemu, terminal.clone())
    }

    fn boot_echoing(&self, qemu: Qemu, echo: impl Write + Send + 'static) -> Result<Booted> {
        std::fs::write(self.file(COMMAND_LINE), format!("{qemu}\n"))
            .context("writing the command line")?;
        let mut guest = Guest::start(qemu, echo)?;
        guest.process.go()?;
        Ok(Booted {
            guest,
            directory: self.directory.clone(),
        })
    }

    fn remove_images(&self) {
        let entries = self.directory.read_dir().into_iter().flatten().flatten();
        for path in entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|it| it == "img"))
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The guest of a cell. Its serial log is written when it goes away.
pub struct Booted {
    guest: Guest,
    directory: PathBuf,
}

impl Booted {
    /// The QEMU process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.guest.process
    }

    /// Types a command as soon as the shell waits for one, and waits until that has written so many bytes to a drive.
    pub fn type_and_expect_writes(&mut self, command: &str, drive: &str, bytes: u64) -> Result<()> {
        let before = self.guest.process.written(drive)?;
        self.type_line(command)?;
        let process = &mut self.guest.process;
        let written = process.wait_for_writes(drive, before + bytes, PATIENCE);
        written.with_context(|| self.last_words())
    }

    /// The serial port.
    pub fn console(&self) -> &Console {
        &self.guest.console
    }

    /// Waits for a line that contains `needle`, among those after the one found last.
    pub fn expect(&mut self, needle: &str) -> Result<Line> {
        self.guest
            .console
            .expect(needle, PATIENCE)
            .with_context(|| self.last_words())
    }

    /// Waits for a line that contains `needle`, wherever it is among the others.
    pub fn eventually(&self, needle: &str) -> Result<()> {
        let found = self.guest.console.wait_for(needle, PATIENCE);
        found.with_context(|| self.last_words())
    }

    /// What a command of the script printed.
    pub fn said(&self, command: &str) -> Result<String> {
        Ok(self.guest.console.output_of(command)?.join("\n"))
    }

    /// What a command of the script printed must have this in it.
    pub fn check_said(&self, command: &str, text: &str) -> Result<()> {
        let output = self.said(command)?;
        ensure!(
            output.contains(text),
            "{command} said {output:?} without {text:?}"
        );
        Ok(())
    }

    /// Waits until the script is done and the shell wants input.
    pub fn expect_prompt(&mut self) -> Result<()> {
        self.guest
            .console
            .wait_for_prompt(PATIENCE)
            .with_context(|| self.last_words())
    }

    /// Types a command as soon as the shell waits for one.
    pub fn type_line(&mut self, command: &str) -> Result<()> {
        self.expect_prompt()?;
        self.guest.console.type_line(command)
    }

    /// Types keys, whatever the guest is doing.
    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        self.guest.console.type_keys(keys)
    }

    /// Presses Enter, whatever the guest is doing.
    pub fn press_enter(&mut self) -> Result<()> {
        self.guest.console.type_line("")
    }

    /// Breaks off the command that runs, and waits until that is seen.
    pub fn interrupt(&mut self) -> Result<Line> {
        self.guest.console.interrupt()?;
        self.expect("^C")
    }

    /// Types a command and waits for a line with `needle` in what it prints.
    pub fn command(&mut self, command: &str, needle: &str) -> Result<Line> {
        self.type_line(command)?;
        self.expect(needle)
    }

    /// Types `poweroff` and judges the end.
    pub fn power_off(mut self) -> Result<()> {
        self.type_line("poweroff")?;
        self.ends_with(&End::PowerOff)
    }

    /// Waits for the end: it must be this one, and QEMU must have nothing to say against the guest.
    pub fn ends_with(&mut self, expected: &End) -> Result<()> {
        self.ends_with_complaints(expected, &[])
    }

    /// Waits for the end: it must be this one, and QEMU must say nothing, and log nothing of the guest's, but what the cell
    /// provokes, to the letter.
    pub fn ends_with_complaints(&mut self, expected: &End, provoked: &[&str]) -> Result<()> {
        let end = self
            .guest
            .process
            .wait(Some(PATIENCE))
            .with_context(|| self.last_words())?;
        self.guest.console.wait_closed(Duration::from_secs(5));
        if end != *expected {
            bail!(
                "{end}, while this was expected: {expected}; {}",
                self.last_words()
            );
        }
        let mut complaints = self.guest.process.complaints();
        complaints.retain(|text| !provoked.iter().any(|known| text.ends_with(known)));
        complaints.retain(|text| !text.contains(MORE_PROCESSORS));
        ensure!(complaints.is_empty(), "QEMU complained: {complaints:?}");
        check_guest_errors(&self.directory.join(GUEST_ERRORS), provoked)
    }

    /// What the guest said last about a failure, or at all.
    fn last_words(&self) -> String {
        let lines = self.guest.console.lines();
        let mut texts = lines
            .iter()
            .rev()
            .map(|line| line.text.as_str())
            .filter(|text| !text.trim().is_empty());
        let complaint = texts
            .clone()
            .find(|text| text.starts_with("error: ") || text.contains("panicked"));
        match complaint.or_else(|| texts.next()) {
            Some(text) => format!("the guest said: {text}"),
            None => "the guest said nothing".to_string(),
        }
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = self.guest.console.save(&self.directory.join(SERIAL_LOG));
    }
}

/// QEMU's log of what the guest did wrong must be empty, but for what is provoked.
fn check_guest_errors(path: &Path, provoked: &[&str]) -> Result<()> {
    // QEMU makes the file when it has something to write.
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let complaints: Vec<_> = log
        .lines()
        .filter(|line| !NOT_THE_GUEST.iter().any(|(known, _)| known == line))
        .filter(|line| !provoked.contains(line))
        .collect();
    match complaints.first() {
        Some(first) => bail!(
            "QEMU logged {} guest errors; the first: {first}",
            complaints.len()
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_error_fails_the_cell() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join(GUEST_ERRORS);
        check_guest_errors(&log, &[])?;
        std::fs::write(&log, "")?;
        check_guest_errors(&log, &[])?;
        std::fs::write(&log, "virtio-blk: wrong\nand more\n")?;
        let error = |provoked: &[&str]| {
            let result = check_guest_errors(&log, provoked);
            result.err().map(|error| error.to_string())
        };
        let said = "QEMU logged 2 guest errors; the first: virtio-blk: wrong";
        assert_eq!(error(&[]).as_deref(), Some(said));
        let said = "QEMU logged 1 guest errors; the first: virtio-blk: wrong";
        assert_eq!(error(&["and more", "wrong"]).as_deref(), Some(said));
        assert_eq!(error(&["and more", "virtio-blk: wrong"]), None);
        Ok(())
    }
}
