//! What the plugin `scripts/count.c` counts between two marks that the guest executes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vringlet_tests::qemu::{self, Qemu};
use vringlet_tests::{project_root, setting};

/// The first version of QEMU that has what the plugin uses.
const OLDEST_QEMU: (u32, u32) = (9, 1);

/// What was counted between two marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Guest instructions.
    pub(crate) instructions: u64,
    /// Writes to notification registers.
    pub(crate) kicks: u64,
    /// Interrupts and exceptions that the guest returned from.
    pub(crate) interrupts: u64,
    /// Accesses to devices' registers, port instructions and halts: where a hypervisor has work to do.
    pub(crate) exits: u64,
}

impl Counts {
    /// Instructions, kicks, interrupts and exits for each of so many operations.
    pub(crate) fn for_each(self, operations: u64) -> [f64; 4] {
        let Self {
            instructions,
            kicks,
            interrupts,
            exits,
        } = self;
        [instructions, kicks, interrupts, exits].map(|count| count as f64 / operations as f64)
    }
}

/// Why nothing can be counted here, if that is so.
pub(crate) fn obstacle() -> Result<Option<String>> {
    let output = Command::new(qemu::PROGRAM).arg("--version").output();
    let output = output.with_context(|| format!("starting {}", qemu::PROGRAM))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = version(&text).with_context(|| format!("QEMU's version in {text:?}"))?;
    let (major, minor) = OLDEST_QEMU;
    Ok((version < OLDEST_QEMU).then(|| format!("counting needs QEMU {major}.{minor}")))
}

/// `(10, 0)` of `QEMU emulator version 10.0.2 (Debian ...)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once("version ")?;
    let mut numbers = version.split(|it: char| !it.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the plugin is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Everything.
    Everything,
    /// The time, so that the guest is as fast as without it.
    Time,
}

/// The plugin, built.
pub(crate) struct Plugin {
    file: PathBuf,
}

impl Plugin {
    /// Builds it by the C compiler, which `CC` may name.
    pub(crate) fn build() -> Result<Self> {
        let root = project_root();
        let file = root.join("target/count.so");
        let compiler = setting("CC").unwrap_or_else(|| "cc".to_string());
        let output = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .arg(&file)
            .arg(root.join("scripts/count.c"))
            .output()
            .with_context(|| format!("starting {compiler}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{compiler}: {said}");
        Ok(Self { file })
    }

    /// Has QEMU write what is counted into `out`.
    pub(crate) fn plug(&self, qemu: &mut Qemu, what: What, out: &Path) -> Result<()> {
        let path = |path| -> Result<String> { Ok(qemu::escape(qemu::utf8(path)?)) };
        let mut value = format!("{},out={}", path(&self.file)?, path(out)?);
        if what == What::Time {
            value += ",count=off";
        }
        qemu.arg("-plugin", &value);
        Ok(())
    }
}

/// What the plugin wrote for a pair of marks.
pub(crate) struct Marked {
    /// What was counted between them.
    pub(crate) between: Counts,
    /// What was counted from the machine's reset to the second, but for accesses to memory before the first.
    pub(crate) total: Counts,
    /// Nanoseconds between them.
    pub(crate) ns: u64,
    /// When the second was, in nanoseconds since 1970.
    pub(crate) date: u64,
}

/// Reads what the plugin wrote: a line for each pair of marks.
pub(crate) fn read(file: &Path) -> Result<Vec<Marked>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let marked = |line| -> Result<Marked> {
        Ok(Marked {
            between: parse(line, "")?,
            total: parse(line, "total_")?,
            ns: number(line, "ns")?,
            date: number(line, "date")?,
        })
    };
    text.lines().map(marked).collect()
}

fn number(line: &str, name: &str) -> Result<u64> {
    let mut words = line.split(' ').filter_map(|word| word.split_once('='));
    let value = words.find(|(known, _)| *known == name);
    let (_, value) = value.with_context(|| format!("the plugin counted no {name}: {line}"))?;
    Ok(value.parse()?)
}

fn parse(line: &str, prefix: &str) -> Result<Counts> {
    let number = |name: &str| number(line, &format!("{prefix}{name}"));
    Ok(Counts {
        instructions: number("instructions")?,
        kicks: number("kicks")?,
        interrupts: number("interrupts")?,
        exits: number("mmio")? + number("ports")? + number("halts")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_plugin_writes_is_read() -> Result<()> {
        let line = "ns=9 instructions=40 kicks=1 interrupts=2 mmio=3 ports=10 halts=20 total_instructions=50";
        let counts = Counts {
            instructions: 40,
            kicks: 1,
            interrupts: 2,
            exits: 33,
        };
        assert_eq!(parse(line, "")?, counts);
        // Not all of it.
        assert!(parse(line, "total_").is_err());
        Ok(())
    }

    #[test]
    fn qemus_version_is_read() {
        let known = version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright");
        assert_eq!(known, Some((10, 0)));
        assert_eq!(version("QEMU emulator version 8.2"), Some((8, 2)));
        assert_eq!(version("none"), None);
    }
}
