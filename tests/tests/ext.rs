//! What was changed in `ext4-view` (third_party/README.md), with images that the host's own tools make. The guest reads
//! files by the same code.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ext4_view::{Ext4, Ext4Read, FileType};
use tempfile::TempDir;
use vringlet_tests::images::run;

/// An image, as `ext4-view` reads it.
struct Image(File);

impl Ext4Read for Image {
    fn read(&mut self, start: u64, dst: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.read_exact_at(dst, start)?)
    }
}

/// A directory tree and the image of it.
struct Medium {
    directory: TempDir,
}

impl Medium {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::create_dir(directory.path().join("tree"))?;
        Ok(Self { directory })
    }

    fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Makes the image of what is in the tree. What is not written of it is not 0: whoever reads it is found out.
    fn make(&self, mib: usize, options: &[&str]) -> Result<()> {
        std::fs::write(self.image(), vec![0xee; mib << 20])?;
        let (tree, image) = (self.tree(), self.image());
        let (tree, image) = (path(&tree)?, path(&image)?);
        let size = format!("{mib}M");
        // Without -E nodiscard it would punch a hole into the file.
        let fixed = ["-q", "-F", "-E", "nodiscard", "-d", tree];
        let arguments = [options, &fixed, &[image, &size]].concat();
        run("mke2fs", &arguments).map(drop)
    }

    fn debugfs(&self, command: &str) -> Result<()> {
        run("debugfs", &["-w", "-R", command, path(&self.image())?]).map(drop)
    }

    fn load(&self) -> Result<Ext4> {
        Ok(Ext4::load(Box::new(Image(File::open(self.image())?)))?)
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A file that has some of its blocks, and holes for the rest.
struct Sparse {
    block: usize,
    count: usize,
    blocks: Vec<usize>,
}

impl Sparse {
    fn data(&self, index: usize) -> Vec<u8> {
        match self.blocks.contains(&index) {
            true => vec![index as u8 | 1; self.block],
            false => vec![0; self.block],
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path)?;
        file.set_len((self.block * self.count) as u64)?;
        for index in &self.blocks {
            file.write_all_at(&self.data(*index), (self.block * index) as u64)?;
        }
        Ok(())
    }

    /// The file on the file system must be the same, from this block on.
    fn compare(&self, fs: &Ext4, name: &str, first: usize) -> Result<()> {
        let mut file = fs.open(name)?;
        file.seek_to((first * self.block) as u64)?;
        let mut bytes = vec![0; self.block];
        for index in first..self.count {
            let len = file.read_bytes(&mut bytes)?;
            ensure!(len == self.block, "block {index} has {len} bytes");
            ensure!(bytes == self.data(index), "block {index} differs");
        }
        ensure!(file.read_bytes(&mut bytes)? == 0, "more than there is");
        Ok(())
    }
}

/// Files with every map of blocks missing: the one in the inode has 12 blocks, and one map of each depth.
#[test]
fn holes_are_zeros_wherever_they_are() -> Result<()> {
    for (block, deepest) in [(1024, 3), (4096, 2)] {
        let medium = Medium::new()?;
        let map = block / 4;
        let single = 12;
        let double = single + map;
        let triple = double + map * map;
        let mut layouts = vec![
            (1, vec![]),
            (single + 1, vec![]),
            (single + 1, vec![single]),
            (double + 1, vec![0]),
            (double + 1, vec![double]),
            (double + 2 * map + 3, vec![single, double + map + 1]),
            (double + 3 * map, vec![double + 2 * map]),
        ];
        if deepest == 3 {
            layouts.push((triple + 1, vec![]));
            layouts.push((triple + 3, vec![5, triple - 1, triple]));
            layouts.push((triple + map * map + 2, vec![triple + map * map]));
        }
        let files = layouts.into_iter().map(|(count, blocks)| Sparse {
            block,
            count,
            blocks,
        });
        let files: BTreeMap<String, Sparse> = (0..)
            .zip(files)
            .map(|(number, file)| (format!("hole-{number}"), file))
            .collect();
        for (name, file) in &files {
            file.write(&medium.tree().join(name))?;
        }
        for kind in ["ext2", "ext3", "ext4"] {
            medium.make(16, &["-t", kind, "-b", &block.to_string()])?;
            let fs = medium.load()?;
            for (name, file) in &files {
                let context = || format!("{kind}, blocks of {block}, {name}");
                let name = format!("/{name}");
                file.compare(&fs, &name, 0).with_context(context)?;
                file.compare(&fs, &name, file.count / 2)
                    .with_context(context)?;
            }
        }
    }
    Ok(())
}

/// Blocks that a program has asked for and not written yet are on the disk with what was there before. Nobody may see it.
#[test]
fn unwritten_blocks_are_zeros() -> Result<()> {
    let medium = Medium::new()?;
    let file = Sparse {
        block: 1024,
        count: 40,
        blocks: [(0..4), (20..22), (39..40)].into_iter().flatten().collect(),
    };
    file.write(&medium.tree().join("file"))?;
    medium.make(4, &["-t", "ext4", "-b", "1024"])?;
    // The first and the last block of the range, which has holes and blocks that are there.
    medium.debugfs("fallocate /file 2 30")?;
    file.compare(&medium.load()?, "/file", 0)?;
    file.compare(&medium.load()?, "/file", 25)?;
    let extents = run("debugfs", &["-R", "extents /file", path(&medium.image())?])?;
    let extents = String::from_utf8_lossy(&extents.stdout).into_owned();
    ensure!(extents.contains("Uninit"), "nothing unwritten: {extents}");
    Ok(())
}

/// A directory need not say what its entries are.
#[test]
fn types_come_from_the_inodes_where_directories_lack_them() -> Result<()> {
    let medium = Medium::new()?;
    let tree = medium.tree();
    let file = Sparse {
        block: 1024,
        count: 20,
        blocks: vec![0, 18],
    };
    std::fs::create_dir_all(tree.join("directory/deeper"))?;
    file.write(&tree.join("directory/deeper/file"))?;
    std::os::unix::fs::symlink("directory/deeper/file", tree.join("link"))?;
    // So many that other kernels would give the directory an index.
    for number in 0..200 {
        std::fs::write(tree.join(format!("directory/file number {number}")), "")?;
    }
    let with_types: &[&str] = &["-t", "ext2"];
    for options in [
        with_types,
        &["-t", "ext2", "-O", "^filetype"],
        &["-t", "ext2", "-O", "none"],
        &["-t", "ext2", "-r", "0"],
        &["-t", "ext3", "-O", "^filetype"],
        &["-t", "ext4", "-O", "^filetype"],
    ] {
        // Turned on later, and not yet known of what was there before.
        for later in [false, true] {
            if later && (options == with_types || options.contains(&"-r")) {
                continue;
            }
            medium.make(4, options)?;
            if later {
                medium.debugfs("feature filetype")?;
            }
            check_types(&medium, &file).with_context(|| format!("{options:?}, later: {later}"))?;
        }
    }
    Ok(())
}

fn check_types(medium: &Medium, file: &Sparse) -> Result<()> {
    let fs = medium.load()?;
    file.compare(&fs, "/directory/deeper/file", 0)?;
    file.compare(&fs, "/link", 0)?;
    let mut types = BTreeMap::new();
    for entry in fs.read_dir("/")? {
        let entry = entry?;
        let name = entry.file_name().display().to_string();
        types.insert(name, entry.file_type()?);
    }
    let of = |name: &str| types.get(name).copied();
    ensure!(of(".") == Some(FileType::Directory));
    ensure!(of("directory") == Some(FileType::Directory));
    ensure!(of("link") == Some(FileType::Symlink));
    let mut count = 0;
    for entry in fs.read_dir("/directory")? {
        let entry = entry?;
        let name = entry.file_name().display().to_string();
        let expected = match name.starts_with("file") {
            true => FileType::Regular,
            false => FileType::Directory,
        };
        ensure!(entry.file_type()? == expected, "{name}");
        count += 1;
    }
    ensure!(count == 203, "{count} entries");
    Ok(())
}

/// Seconds are signed and have two more bits elsewhere: neither end of what they reach may make a file unreadable.
#[test]
fn times_before_1970_and_after_2038_are_times() -> Result<()> {
    let medium = Medium::new()?;
    // 1901 is the first that can be said, 2446 the last.
    let times: [i64; 8] = [
        i32::MIN.into(),
        -1,
        0,
        i32::MAX.into(),
        i64::from(i32::MAX) + 1,
        1 << 32,
        5 << 31,
        (4 << 32) - (1 << 31) - 1,
    ];
    for seconds in times {
        File::create(medium.tree().join(seconds.to_string()))?;
    }
    medium.make(8, &["-t", "ext4", "-I", "256"])?;
    // mke2fs before 1.47.1 takes over the lower half alone.
    for seconds in times {
        let low = seconds as u32;
        let extra = (seconds - i64::from(low as i32)) >> 32;
        medium.debugfs(&format!("set_inode_field /{seconds} mtime_lo {low:#x}"))?;
        medium.debugfs(&format!("set_inode_field /{seconds} mtime_extra {extra}"))?;
    }
    let fs = medium.load()?;
    for seconds in times {
        let metadata = fs.metadata(format!("/{seconds}").as_str())?;
        ensure!(
            metadata.modified().seconds() == seconds,
            "{seconds} is read as {:?}",
            metadata.modified()
        );
    }
    Ok(())
}
