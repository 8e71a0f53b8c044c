//! File systems in image files, made, read and checked by the host's own tools: dosfstools, mtools, e2fsprogs, exfatprogs,
//! fdisk. exfatprogs have nothing that puts files on an image: `hadris-fat` does that, and they check it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use hadris_fat::exfat::sync::ExFatFs;
use hadris_fs::MountOptions;
use hadris_fs::sync::Volume;

use crate::qemu::utf8;

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// FAT with entries of so many bits.
    Fat(u8),
    /// ext2, ext3 or ext4, by the number.
    Ext(u8),
    /// exFAT.
    ExFat,
}

/// Files by their paths: `a.txt`, `directory/b.txt`. A path that ends in a slash is an empty directory.
pub type Files = BTreeMap<String, Vec<u8>>;

impl FileSystem {
    /// As in names of cells: `fat16`, `ext4`.
    pub fn name(self) -> String {
        match self {
            FileSystem::Fat(bits) => format!("fat{bits}"),
            FileSystem::Ext(number) => format!("ext{number}"),
            FileSystem::ExFat => "exfat".into(),
        }
    }

    /// Makes an image of so many MiB with these files on it.
    pub fn make(self, path: &Path, mib: u64, label: &str, files: &Files) -> Result<()> {
        let image = std::fs::File::create(path)?;
        image.set_len(mib << 20)?;
        drop(image);
        let image = utf8(path)?;
        // Both tools copy whole trees.
        let tree = tempfile::tempdir().context("a directory for files")?;
        for (name, bytes) in files {
            let file = tree.path().join(name);
            match name.ends_with('/') {
                true => std::fs::create_dir_all(&file)?,
                false => {
                    std::fs::create_dir_all(file.parent().context("no directory")?)?;
                    std::fs::write(&file, bytes)?;
                }
            }
        }
        match self {
            FileSystem::Fat(bits) => {
                let bits = bits.to_string();
                run("mkfs.fat", &["-F", &bits, "-n", label, image])?;
                let mut entries = tree.path().read_dir()?.collect::<Result<Vec<_>, _>>()?;
                entries.sort_by_key(|entry| entry.file_name());
                for entry in entries {
                    run(
                        "mcopy",
                        &["-i", image, "-s", "-Q", utf8(&entry.path())?, "::"],
                    )?;
                }
            }
            FileSystem::Ext(number) => {
                let (kind, tree) = (format!("ext{number}"), utf8(tree.path())?);
                let size = format!("{mib}M");
                run(
                    "mke2fs",
                    &[
                        "-q", "-F", "-t", &kind, "-L", label, "-d", tree, image, &size,
                    ],
                )?;
            }
            FileSystem::ExFat => {
                run("mkfs.exfat", &["-L", label, image])?;
                fill_exfat(path, files)?;
                self.check(path)?;
            }
        }
        Ok(())
    }

    /// The bytes of a file on an image.
    pub fn read(self, image: &Path, name: &str) -> Result<Vec<u8>> {
        let image = utf8(image)?;
        let output = match self {
            FileSystem::Fat(_) => run("mcopy", &["-i", image, &format!("::{name}"), "-"])?,
            FileSystem::Ext(_) => run("debugfs", &["-R", &format!("cat \"/{name}\""), image])?,
            FileSystem::ExFat => bail!("exfatprogs read no files"),
        };
        Ok(output.stdout)
    }

    /// The names in all directories of a FAT image, those of directories with a slash behind, sorted.
    pub fn names(self, image: &Path) -> Result<Vec<String>> {
        ensure!(matches!(self, FileSystem::Fat(_)), "only for FAT");
        let output = run("mdir", &["-i", utf8(image)?, "-/", "-b", "::"])?;
        let text = String::from_utf8(output.stdout)?;
        let names = text.lines().filter_map(|line| line.strip_prefix("::/"));
        let mut names: Vec<_> = names.map(str::to_string).collect();
        names.sort();
        Ok(names)
    }

    /// The file system must be without fault.
    pub fn check(self, image: &Path) -> Result<()> {
        let image = utf8(image)?;
        let output = match self {
            FileSystem::Fat(_) => run("fsck.fat", &["-n", "-v", image])?,
            FileSystem::Ext(_) => run("e2fsck", &["-f", "-n", image])?,
            FileSystem::ExFat => run("fsck.exfat", &["-n", image])?,
        };
        // Some things it mentions and does not mind.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for complaint in [
            "Dirty bit",
            "differ",
            "Free cluster summary wrong",
            "orphan",
        ] {
            ensure!(!text.contains(complaint), "the checker says {text:?}");
        }
        Ok(())
    }
}

fn fill_exfat(path: &Path, files: &Files) -> Result<()> {
    let fs = ExFatFs::mount(std::fs::read(path)?, MountOptions::new())?;
    let volume = Volume::new(fs);
    for (name, bytes) in files {
        let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
        volume.create_dir_all(format!("/{directory}"))?;
        if !file.is_empty() {
            volume.write(format!("/{name}"), bytes)?;
        }
    }
    volume.lock()?.sync()?;
    let fs = volume.into_inner();
    let fs = fs.map_err(|_| anyhow::anyhow!("a file is still open"))?;
    std::fs::write(path, fs.unmount()?)?;
    Ok(())
}

/// Why there can be no exFAT images, if there can't.
pub fn no_exfat() -> Option<String> {
    let output = tool("mkfs.exfat", &["-V"]).and_then(|mut tool| Ok(tool.output()?));
    let error = output.err()?;
    Some(format!("no mkfs.exfat (exfatprogs): {error}"))
}

/// Writes partitions into an image, as `sfdisk` reads them from its standard input.
pub fn partition(image: &Path, table: &str) -> Result<()> {
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), table)?;
    let mut command = tool("sfdisk", &["-q", utf8(image)?])?;
    command.stdin(script.reopen()?);
    finish("sfdisk", command.output()?)?;
    Ok(())
}

/// Gives the directories of an ext4 image an index, as the kernel of a real system would have when they grew.
pub fn index_directories(image: &Path) -> Result<()> {
    let output = tool("e2fsck", &["-f", "-y", "-D", utf8(image)?])?.output()?;
    // 1: it changed what it was to change.
    match output.status.code() {
        Some(1) => Ok(()),
        _ => finish("e2fsck", output).map(drop),
    }
}

fn tool(program: &str, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    // mtools: no settings of the user's, and the times as they are on the medium.
    command.env("MTOOLSRC", "/dev/null").env("TZ", "UTC");
    command.env("LC_ALL", "C.UTF-8");
    command.args(arguments);
    Ok(command)
}

/// Runs a tool to its end, which must be a success.
pub fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    let output = tool(program, arguments)?.output();
    finish(
        program,
        output.with_context(|| format!("starting {program}; `make test` installs it"))?,
    )
}

fn finish(program: &str, output: Output) -> Result<Output> {
    if !output.status.success() {
        bail!(
            "{program}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}
