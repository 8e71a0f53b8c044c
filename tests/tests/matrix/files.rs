//! Files: what the host's tools put on an image is what the guest reads, and what the guest writes is without fault to
//! the host's checkers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Cell, MEMORY};
use vringlet_tests::disk::{SECTOR, pattern, sha256};
use vringlet_tests::guest::End;
use vringlet_tests::images::{FileSystem, Files, index_directories, no_exfat, partition, run};
use vringlet_tests::qemu::{Image, Qemu, escape, utf8};

use crate::Spec;

const FATS: [FileSystem; 3] = [
    FileSystem::Fat(12),
    FileSystem::Fat(16),
    FileSystem::Fat(32),
];
const ALL: [FileSystem; 5] = [
    FileSystem::Fat(12),
    FileSystem::Fat(16),
    FileSystem::Fat(32),
    FileSystem::Ext(2),
    FileSystem::Ext(4),
];
/// More than any of these file systems needs.
const PMEM_MEMORY: &str = "128M,slots=2,maxmem=1G";

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for kind in ALL {
        let name = format!("q35/files/read/{}", kind.name());
        cells.push(Spec::new(name, move |cell| read(cell, "q35", kind)));
    }
    for kind in FATS {
        let name = format!("q35/files/write/{}", kind.name());
        cells.push(Spec::new(name, move |cell| write(cell, "q35", kind)));
    }
    let fat = FileSystem::Fat(16);
    cells.push(Spec::new("microvm/files/read", move |cell| {
        read(cell, "microvm", FileSystem::Ext(4))
    }));
    cells.push(Spec::new("microvm/files/write", move |cell| {
        write(cell, "microvm", fat)
    }));
    cells.push(Spec::new("q35/files/blocks-of-4096", large_blocks));
    cells.push(Spec::new("q35/files/pmem", persistent_memory));
    cells.push(Spec::new("q35/files/partitions", partitions));
    cells.push(Spec::new("q35/files/partitions-damaged", damaged_tables));
    cells.push(Spec::new("q35/files/holes", holes));
    cells.push(Spec::new("q35/files/broken-off", broken_off));
    cells.push(Spec::new("q35/files/poweroff", powered_off));
    cells.push(Spec::new("q35/files/refusals", refusals));
    cells.push(Spec::new("q35/files/full", full));
    cells.push(Spec::new("q35/files/disk-fails", disk_fails));
    for kind in ALL {
        let name = format!("q35/files/corrupt/{}", kind.name());
        cells.push(Spec::new(name, move |cell| corrupt(cell, kind)));
    }
    let exfat = FileSystem::ExFat;
    let spec = Spec::new("q35/files/read/exfat", move |cell| read(cell, "q35", exfat));
    cells.push(spec.unless(no_exfat));
    let spec = Spec::new("q35/files/corrupt/exfat", move |cell| corrupt(cell, exfat));
    cells.push(spec.unless(no_exfat));
    cells.push(Spec::new("q35/files/corrupt/cycle", cycle));
    cells.push(Spec::new("q35/files/corrupt/hostile-ext", hostile_ext));
    cells.push(Spec::new("q35/files/corrupt/endless-ext", endless_ext));
    cells.push(Spec::new("q35/files/two-names", two_names));
    cells
}

/// Bytes that look like nothing but themselves.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    pattern(seed, 0..len.div_ceil(SECTOR) as u64)
        .take(len)
        .collect()
}

/// Files of all kinds of length, name and depth.
fn tree() -> Files {
    let mut files = Files::new();
    for (seed, len) in (0..).zip([0, 1, 511, 512, 513, 4096, 65_535, 65_536, 65_537, 700_001]) {
        files.insert(format!("len-{len}.bin"), noise(seed, len));
    }
    files.insert("SHORT.TXT".into(), b"short\n".to_vec());
    files.insert(
        "A rather long name, with spaces and a comma.text".into(),
        b"long\n".to_vec(),
    );
    files.insert("Grüße.txt".into(), "schön\n".into());
    files.insert("a/b/c/d/e/deep.txt".into(), b"deep\n".to_vec());
    files.insert("empty/".into(), Vec::new());
    for number in 0..200 {
        let name = format!("many/file number {number}");
        files.insert(name, number.to_string().into_bytes());
    }
    files
}

/// An image of this kind with files on it. FAT12 has no room for more than its size allows.
fn image(cell: &Cell, name: &str, kind: FileSystem, files: &Files) -> Result<PathBuf> {
    let path = cell.file(&format!("{name}.img"));
    let mib = match kind {
        FileSystem::Fat(12) => 8,
        FileSystem::Fat(16) => 24,
        FileSystem::Fat(_) => 40,
        FileSystem::Ext(_) | FileSystem::ExFat => 16,
    };
    kind.make(&path, mib, "LABEL", files)?;
    Ok(path)
}

/// Adds disks; the guest calls them blk0, blk1 and so on, in this order.
fn attach(qemu: &mut Qemu, images: &[&Path]) -> Result<()> {
    for (number, image) in images.iter().enumerate() {
        qemu.drive(&format!("d{number}"), image, Image::RAW)?;
        qemu.virtio("blk", &format!("disk{number}"), &format!("drive=d{number}"));
    }
    Ok(())
}

/// The lines of `ls` for a directory of a tree.
fn listing(files: &Files, directory: &str) -> Vec<String> {
    let mut lines = std::collections::BTreeMap::new();
    for (name, bytes) in files {
        let Some(rest) = name.strip_prefix(directory) else {
            continue;
        };
        match rest.split_once('/') {
            Some((name, _)) => lines.insert(name, format!("{:>12}  {name}/", "")),
            None => lines.insert(rest, format!("{:>12}  {rest}", bytes.len())),
        };
    }
    lines.into_values().collect()
}

/// Every file and every directory, and not a bit of the image changes.
fn read(cell: &Cell, machine: &str, kind: FileSystem) -> Result<()> {
    let files = tree();
    let path = image(cell, "disk", kind, &files)?;
    let before = std::fs::read(&path)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    attach(&mut qemu, &[&path])?;
    let mut script = vec!["strict".to_string(), "ls /".into(), "ls".into()];
    let hash_of = |name: &str| format!("sha256sum \"/blk0/{name}\"");
    let read = files.keys().filter(|name| !name.ends_with('/'));
    let read: Vec<_> = read
        .filter(|name| !name.starts_with("many/") || name.ends_with('7'))
        .collect();
    script.extend(read.iter().map(|name| hash_of(name)));
    script.extend(["ls /blk0/many".into(), "ls /blk0/empty".into()]);
    script.extend(["cd /blk0/a/b".into(), "cat c/d/e/deep.txt".into()]);
    script.extend(["cat ../../Grüße.txt".into(), "poweroff".into()]);
    qemu.script(&script.join("\n"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;

    guest.check_said("ls /", "\"LABEL\"")?;
    for name in read {
        let bytes = files.get(name).context("no such file")?;
        guest.check_said(&hash_of(name), &sha256(bytes))?;
    }
    let mut root = listing(&files, "");
    if let FileSystem::Ext(_) = kind {
        root.push(format!("{:>12}  lost+found/", ""));
        root.sort_by(|a, b| {
            a[14..]
                .trim_end_matches('/')
                .cmp(b[14..].trim_end_matches('/'))
        });
    }
    ensure!(guest.said("ls")? == root.join("\n"), "{root:?}");
    let many = listing(&files, "many/").join("\n");
    ensure!(guest.said("ls /blk0/many")? == many, "{many:?}");
    ensure!(guest.said("ls /blk0/empty")?.is_empty());
    ensure!(guest.said("cat c/d/e/deep.txt")? == "deep");
    ensure!(guest.said("cat ../../Grüße.txt")? == "schön");
    ensure!(
        std::fs::read(&path)? == before,
        "reading has changed the image"
    );
    Ok(())
}

/// Everything that can be done to a file, and the host's checker finds no fault in what comes of it.
fn write(cell: &Cell, machine: &str, kind: FileSystem) -> Result<()> {
    let mut files = tree();
    // Its own copy of most things, so that there is something to overwrite.
    let source = image(cell, "source", FileSystem::Ext(4), &files)?;
    let before = std::fs::read(&source)?;
    let path = image(cell, "target", kind, &files)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.arg("-rtc", "base=2031-05-06T07:08:10,clock=vm");
    attach(&mut qemu, &[&path, &source])?;
    let mut script = vec!["strict", "date", "cd /blk0"];
    script.extend([
        "mkdir new",
        "mkdir \"new/with a long name\"",
        "cp /blk1/len-700001.bin \"new/with a long name/copy of it.bin\"",
        "cp /blk1/len-513.bin new",
        "cp len-65537.bin /blk0/new/SAME.BIN",
        // Overwritten by something shorter, by something longer, by nothing.
        "cp /blk1/len-512.bin len-65536.bin",
        "cp /blk1/len-65535.bin len-1.bin",
        "cp /blk1/len-0.bin len-4096.bin",
        "rm len-511.bin",
        "rm \"A rather long name, with spaces and a comma.text\"",
        "rmdir empty",
        "mv SHORT.TXT \"renamed into something long.txt\"",
        "mv a/b/c/d/e/deep.txt .",
        "mv many plenty",
        "ls",
    ]);
    let mut script: Vec<_> = script.into_iter().map(str::to_string).collect();
    // A directory that grows and shrinks.
    for number in 0..100 {
        script.push(format!(
            "cp /blk1/len-1.bin \"new/one more small file {number}\""
        ));
    }
    for number in 0..50 {
        script.push(format!("rm \"/blk0/plenty/file number {}\"", 4 * number));
    }
    script.push("poweroff".into());
    qemu.script(&script.join("\n"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;

    guest.check_said("date", "2031-05-06 07:08:1")?;
    let original = tree();
    let bytes_of = |name: &str| original.get(name).cloned().context("no such file");
    for (name, from) in [
        ("new/with a long name/copy of it.bin", "len-700001.bin"),
        ("new/len-513.bin", "len-513.bin"),
        ("new/SAME.BIN", "len-65537.bin"),
        ("len-65536.bin", "len-512.bin"),
        ("len-1.bin", "len-65535.bin"),
        ("len-4096.bin", "len-0.bin"),
        ("renamed into something long.txt", "SHORT.TXT"),
        ("deep.txt", "a/b/c/d/e/deep.txt"),
    ] {
        files.insert(name.into(), bytes_of(from)?);
    }
    for gone in [
        "len-511.bin",
        "A rather long name, with spaces and a comma.text",
        "empty/",
        "SHORT.TXT",
        "a/b/c/d/e/deep.txt",
    ] {
        files.remove(gone);
    }
    for number in 0..200 {
        let bytes = files.remove(&format!("many/file number {number}"));
        if number % 4 != 0 {
            let name = format!("plenty/file number {number}");
            files.insert(name, bytes.context("no such file")?);
        }
    }
    for number in 0..100 {
        let name = format!("new/one more small file {number}");
        files.insert(name, bytes_of("len-1.bin")?);
    }
    kind.check(&path)?;
    // The directories that nothing is in any more are still there.
    let mut names: std::collections::BTreeSet<String> = files.keys().cloned().collect();
    names.insert("a/b/c/d/e/".into());
    for name in names.clone() {
        let directories = name
            .match_indices('/')
            .map(|(at, _)| name[..=at].to_string());
        names.extend(directories);
    }
    let found = kind.names(&path)?;
    let expected: Vec<_> = names.into_iter().collect();
    ensure!(found == expected, "{found:?}\nand not\n{expected:?}");
    for (name, bytes) in &files {
        ensure!(
            kind.read(&path, name)? == *bytes,
            "{name} is not what it should be"
        );
    }
    let image = utf8(&path)?;
    let listed = run("mdir", &["-i", image, "::/new"])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("2031-05-06   7:08"), "{listed}");
    ensure!(std::fs::read(&source)? == before, "the source was changed");
    Ok(())
}

/// A disk that only takes whole blocks of 4096 bytes.
fn large_blocks(cell: &Cell) -> Result<()> {
    let kind = FileSystem::Fat(32);
    let path = cell.file("disk.img");
    std::fs::File::create(&path)?.set_len(300 << 20)?;
    let text = utf8(&path)?;
    run("mkfs.fat", &["-F", "32", "-S", "4096", text])?;
    let source = image(cell, "source", FileSystem::Ext(4), &tree())?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", &path, Image::RAW)?;
    let blocks = "drive=d0,logical_block_size=4096,physical_block_size=4096";
    qemu.virtio("blk", "disk0", blocks);
    qemu.drive("d1", &source, Image::RAW)?;
    qemu.virtio("blk", "disk1", "drive=d1");
    let copy = "cp /blk1/len-700001.bin /blk0/copy.bin";
    qemu.script(&format!(
        "strict; {copy}; sha256sum /blk0/copy.bin; poweroff"
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    let expected = noise(9, 700_001);
    guest.check_said("sha256sum /blk0/copy.bin", &sha256(&expected))?;
    kind.check(&path)?;
    ensure!(kind.read(&path, "copy.bin")? == expected);
    Ok(())
}

/// What a table does not say rightly is named, and the rest of it is there.
fn damaged_tables(cell: &Cell) -> Result<()> {
    let files = Files::from([("a.txt".to_string(), noise(1, 3000))]);
    let fat = std::fs::read(image(cell, "fat", FileSystem::Fat(12), &files)?)?;
    let sectors = (fat.len() / SECTOR) as u32;
    // Kind, first sector and length of each partition, and what is changed in the table then.
    let disk = |name: &str, entries: &[(u8, u32, u32)], change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = vec![0; 2048 * SECTOR];
        for (entry, (kind, start, len)) in entries.iter().enumerate() {
            let entry = 446 + 16 * entry;
            bytes[entry + 4] = *kind;
            put(&mut bytes, entry + 8, *start);
            put(&mut bytes, entry + 12, *len);
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes.extend(&fat);
        change(&mut bytes);
        let path = cell.file(name);
        std::fs::write(&path, bytes)?;
        anyhow::Ok(path)
    };
    let last = 2048 + sectors;
    let disks = [
        // Past the end, with a flag that is none, and longer than the disk: it is there all the same.
        disk(
            "entries.img",
            &[
                (0x83, last, 8),
                (0x82, 8, 8),
                (0x82, 16, 8),
                (1, 2048, u32::MAX),
            ],
            &|bytes| bytes[446 + 16] = 0x7f,
        )?,
        // The chain of an extended partition leads back to its beginning.
        disk("chain.img", &[(1, 2048, sectors), (5, 8, 2000)], &|bytes| {
            let chain = 8 * SECTOR;
            bytes[chain + 446 + 4] = 0x82;
            put(bytes, chain + 446 + 8, 8);
            put(bytes, chain + 446 + 12, 8);
            bytes[chain + 446 + 16 + 4] = 5;
            put(bytes, chain + 446 + 16 + 12, 16);
            bytes[chain + 510..chain + 512].copy_from_slice(&[0x55, 0xaa]);
        })?,
        // A file system that is known by name.
        disk("ntfs.img", &[], &|bytes| {
            bytes[3..11].copy_from_slice(b"NTFS    ");
        })?,
    ];
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &disks.each_ref().map(PathBuf::as_path))?;
    let reads = ["/blk0p4", "/blk1p1"].map(|it| format!("sha256sum {it}/a.txt"));
    qemu.script(&format!("ls /; ls /blk0p2; {}; poweroff", reads.join("; ")));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for read in &reads {
        guest.check_said(read, &sha256(&noise(1, 3000)))?;
    }
    for line in [
        "/blk0p1: the partition is not there: it begins at block",
        "/blk0p2: the partition is not there: its entry begins with 0x7f",
        "/blk0p3: no file system that is known (4 KiB, Linux swap)",
        "KiB free (FAT12, cut off where the device ends)",
        "/blk1p5: no file system that is known (4 KiB, Linux swap)",
        "/blk1: there may be more partitions: invalid extended boot record chain",
        "/blk2: is NTFS, which is not read",
    ] {
        guest.check_said("ls /", line)?;
    }
    guest.check_said("ls /blk0p2", "error: /blk0p2: the partition is not there")
}

/// Files with holes, blocks that were never written, and directories without the types of their entries. `ext.rs` has every
/// place that they may have.
fn holes(cell: &Cell) -> Result<()> {
    const LEN: usize = 700 << 10;
    let mut bytes = vec![0; LEN];
    for block in [300, 400] {
        bytes[block << 10..(block + 1) << 10].copy_from_slice(&noise(block as u64, 1024));
    }
    let tree = tempfile::tempdir()?;
    std::fs::create_dir(tree.path().join("d"))?;
    std::fs::write(tree.path().join("d/hole.bin"), &bytes)?;
    let make = |name: &str, options: &[&str]| {
        let path = cell.file(name);
        // What nobody wrote is not 0.
        std::fs::write(&path, vec![0xee; 2 << 20])?;
        let fixed = ["-q", "-F", "-b", "1024", "-E", "nodiscard", "-d"];
        let arguments = [options, &fixed, &[utf8(tree.path())?, utf8(&path)?, "2M"]].concat();
        run("mke2fs", &arguments)?;
        anyhow::Ok(path)
    };
    let old = make("old.img", &["-t", "ext2", "-r", "0"])?;
    let new = make("new.img", &["-t", "ext4"])?;
    let fallocate = "fallocate /d/hole.bin 280 420";
    run("debugfs", &["-w", "-R", fallocate, utf8(&new)?])?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&old, &new])?;
    let reads = ["/blk0", "/blk1"].map(|it| format!("sha256sum {it}/d/hole.bin"));
    qemu.script(&format!(
        "strict; ls /blk0; ls /blk0/d; {}; poweroff",
        reads.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("ls /blk0", "  d/")?;
    guest.check_said("ls /blk0/d", &format!("{LEN}  hole.bin"))?;
    for read in &reads {
        guest.check_said(read, &sha256(&bytes))?;
    }
    Ok(())
}

/// The same on persistent memory: FAT is written there, ext4 read, and copied from one to the other.
fn persistent_memory(cell: &Cell) -> Result<()> {
    let fat = FileSystem::Fat(16);
    let files = tree();
    let target = image(cell, "target", fat, &files)?;
    let source = image(cell, "source", FileSystem::Ext(4), &files)?;
    let mut qemu = cell.qemu(&"q35".parse()?, PMEM_MEMORY)?;
    qemu.persistent_memory("pmem0", &target, "")?;
    qemu.persistent_memory("pmem1", &source, "")?;
    qemu.script(
        "strict; ls /; ls; sha256sum len-700001.bin; sha256sum /pmem1/len-700001.bin; \
         cp /pmem1/len-65537.bin /pmem0/new.bin; rm len-0.bin; poweroff",
    );
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    ensure!(guest.said("ls")? == listing(&files, "").join("\n"));
    let hash = sha256(files.get("len-700001.bin").context("no such file")?);
    guest.check_said("sha256sum len-700001.bin", &hash)?;
    guest.check_said("sha256sum /pmem1/len-700001.bin", &hash)?;
    fat.check(&target)?;
    let expected = files.get("len-65537.bin").context("no such file")?;
    ensure!(fat.read(&target, "new.bin")? == *expected);
    ensure!(!fat.names(&target)?.contains(&"len-0.bin".to_string()));
    Ok(())
}

/// Partitions of both kinds of table, a logical one among them; what is around them stays as it is.
fn partitions(cell: &Cell) -> Result<()> {
    let fat = FileSystem::Fat(16);
    let files = Files::from([("a.txt".to_string(), noise(1, 3000))]);
    let fat_image = std::fs::read(image(cell, "fat", fat, &files)?)?;
    let ext_image = std::fs::read(image(cell, "ext", FileSystem::Ext(4), &files)?)?;
    let table = |name: &str, table: &str, places: [u64; 2]| {
        let path = cell.file(name);
        std::fs::File::create(&path)?.set_len(64 << 20)?;
        partition(&path, table)?;
        let mut bytes = std::fs::read(&path)?;
        for (place, image) in places.into_iter().zip([&fat_image, &ext_image]) {
            let start = (place << 20) as usize;
            bytes[start..start + image.len()].copy_from_slice(image);
        }
        std::fs::write(&path, &bytes)?;
        anyhow::Ok(path)
    };
    let gpt = table(
        "gpt.img",
        "label: gpt\nstart=1MiB,size=24MiB\nstart=26MiB,size=16MiB\n",
        [1, 26],
    )?;
    let mbr = table(
        "mbr.img",
        "label: dos\nstart=1MiB,size=24MiB,type=6\nstart=25MiB,size=38MiB,type=5\nstart=26MiB,size=16MiB,type=83\n",
        [1, 26],
    )?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&gpt, &mbr])?;
    let reads =
        ["/blk0p1", "/blk0p2", "/blk1p1", "/blk1p5"].map(|it| format!("sha256sum {it}/a.txt"));
    let script = format!(
        "strict; ls /; {}; cp /blk0p2/a.txt /blk0p1/b.txt; cp /blk1p5/a.txt /blk1p1/b.txt; poweroff",
        reads.join("; ")
    );
    qemu.script(&script);
    let before = [std::fs::read(&gpt)?, std::fs::read(&mbr)?];
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for read in &reads {
        guest.check_said(read, &sha256(&noise(1, 3000)))?;
    }
    for (path, before) in [gpt, mbr].iter().zip(before) {
        let after = std::fs::read(path)?;
        let fat_bytes = 1 << 20..25 << 20;
        ensure!(
            after[..fat_bytes.start] == before[..fat_bytes.start],
            "the table"
        );
        ensure!(
            after[fat_bytes.end..] == before[fat_bytes.end..],
            "the rest"
        );
        let part = cell.file("part.img");
        std::fs::write(&part, &after[fat_bytes])?;
        fat.check(&part)?;
        ensure!(fat.read(&part, "b.txt")? == noise(1, 3000));
    }
    Ok(())
}

/// Ctrl-C in the middle of a copy: what was written is there and the file system has no fault. In the middle of a read on
/// a fiber: the next read is as good as any.
fn broken_off(cell: &Cell) -> Result<()> {
    let fat = FileSystem::Fat(32);
    let large = Files::from([("large.bin".to_string(), noise(5, 12 << 20))]);
    let source = image(cell, "source", FileSystem::Ext(4), &large)?;
    let target = image(cell, "target", fat, &Files::new())?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    for (number, path) in [&source, &target].into_iter().enumerate() {
        let file = escape(utf8(path)?);
        // Some seconds for the file.
        qemu.arg(
            "-drive",
            &format!("if=none,id=d{number},format=raw,file={file},throttling.bps-total=4194304"),
        );
        qemu.virtio("blk", &format!("disk{number}"), &format!("drive=d{number}"));
    }
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    for _ in 0..3 {
        guest.type_and_expect_writes("cp /blk0/large.bin /blk1/copy.bin", "d1", 1 << 20)?;
        guest.interrupt()?;
        guest.type_line("sha256sum /blk0/large.bin")?;
        std::thread::sleep(Duration::from_millis(300));
        guest.interrupt()?;
    }
    guest.command("ls /blk1", "copy.bin")?;
    guest.command("cp /blk0/large.bin /blk1/whole.bin", "12582912 bytes")?;
    guest.power_off()?;
    fat.check(&target)?;
    let copy = fat.read(&target, "copy.bin")?;
    let expected = noise(5, 12 << 20);
    ensure!(
        !copy.is_empty() && copy.len() < expected.len(),
        "{}",
        copy.len()
    );
    ensure!(copy == expected[..copy.len()]);
    ensure!(fat.read(&target, "whole.bin")? == expected);
    Ok(())
}

/// A copy that goes on beside other commands ends when the machine is switched off: what was copied is in the file, and the
/// file system has no fault. The disk stands still meanwhile and goes on later.
fn powered_off(cell: &Cell) -> Result<()> {
    let fat = FileSystem::Fat(32);
    let bytes = noise(5, 12 << 20);
    let files = Files::from([("large.bin".to_string(), bytes.clone())]);
    let source = image(cell, "source", FileSystem::Ext(4), &files)?;
    let target = image(cell, "target", fat, &Files::new())?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&source, &target])?;
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    guest.process().limit_writes("d1", 4 << 20)?;
    guest.type_and_expect_writes("bg cp /blk0/large.bin /blk1/copy.bin", "d1", 1 << 20)?;
    guest.process().limit_writes("d1", 1)?;
    guest.type_line("poweroff")?;
    // The guest can't end before its disk goes on.
    std::thread::sleep(Duration::from_millis(500));
    guest.process().limit_writes("d1", 0)?;
    guest.ends_with(&End::PowerOff)?;
    fat.check(&target)?;
    let copy = fat.read(&target, "copy.bin")?;
    ensure!(
        !copy.is_empty() && copy.len() < bytes.len(),
        "{} bytes of {}",
        copy.len(),
        bytes.len()
    );
    ensure!(copy == bytes[..copy.len()]);
    Ok(())
}

/// What can't be done is refused with its reason, and changes nothing.
fn refusals(cell: &Cell) -> Result<()> {
    let files = Files::from([
        ("a.txt".to_string(), b"a".to_vec()),
        ("d/b.txt".to_string(), b"b".to_vec()),
    ]);
    let fat = image(cell, "fat", FileSystem::Fat(16), &files)?;
    let ext = image(cell, "ext", FileSystem::Ext(4), &files)?;
    let locked = image(cell, "locked", FileSystem::Fat(16), &files)?;
    let empty = cell.file("empty.img");
    std::fs::write(&empty, vec![0; 1 << 20])?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&fat, &ext])?;
    let image = Image {
        read_only: true,
        ..Image::RAW
    };
    qemu.drive("d2", &locked, image)?;
    qemu.virtio("blk", "disk2", "drive=d2");
    qemu.drive("d3", &empty, Image::RAW)?;
    qemu.virtio("blk", "disk3", "drive=d3");
    let refused = [
        ("cat nope", "/blk0/nope: no such file or directory"),
        ("cat /blk1/nope", "/blk1/nope: no such file or directory"),
        ("cat d", "/blk0/d: is a directory"),
        ("cat /blk1/d", "/blk1/d: is a directory"),
        ("cat /blk1/a.txt/x", "is no directory"),
        ("cat /", "is a directory"),
        ("ls a.txt/x", "is no directory"),
        ("cd a.txt", "/blk0/a.txt: is no directory"),
        ("cd /blk7", "/blk7: no such device"),
        ("ls /blk0p1", "/blk0p1: no such partition"),
        ("ls /blk3", "/blk3: no file system that is known"),
        ("cp a.txt a.txt", "is the file that is read"),
        ("cp a.txt A.TXT", "is the file that is read"),
        ("cp a.txt d/../a.txt", "is the file that is read"),
        ("cp d x", "/blk0/d: is a directory"),
        ("cp a.txt /blk1/x", "/blk1/x: can only be read"),
        ("cp a.txt /blk2/x", "/blk2/x: can only be read"),
        ("cp a.txt /", "/a.txt: no such device"),
        ("cp a.txt nope/x", "no such file or directory"),
        ("mv a.txt /blk1/x", "is on another volume"),
        ("mv a.txt d/b.txt", "/blk0/d/b.txt: exists already"),
        ("mv a.txt nope/x", "/blk0/nope/x: no such file or directory"),
        ("mv nope x", "/blk0/nope: no such file or directory"),
        ("mv d d/e", "/blk0/d"),
        ("rm d", "/blk0/d: is a directory"),
        ("rm nope", "no such file or directory"),
        ("rmdir d", "/blk0/d: the directory is not empty"),
        ("rmdir a.txt", "/blk0/a.txt: is no directory"),
        ("rm /blk0", "is a directory"),
        ("rm /blk2/a.txt", "can only be read"),
        ("mkdir d", "/blk0/d: exists already"),
        ("mkdir \"a:b\"", "/blk0/a:b: "),
        ("cp a.txt", "TO is missing"),
        ("cp a.txt b c", "one word too many"),
        ("sha256sum", "FILE is missing"),
        ("screen show a.txt", "there is no graphics adapter"),
        ("sound play a.txt", "there is no sound card"),
    ];
    let commands: Vec<_> = refused.iter().map(|(command, _)| *command).collect();
    qemu.script(&format!("{}\npoweroff", commands.join("\n")));
    let before = [&fat, &ext, &locked, &empty].map(std::fs::read);
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for (command, reason) in refused {
        let output = guest.said(command)?;
        let error = output.starts_with("error: ") && output.contains(reason);
        ensure!(error, "{command} said {output:?} without {reason:?}");
    }
    for (path, before) in [&fat, &ext, &locked, &empty].into_iter().zip(before) {
        ensure!(
            std::fs::read(path)? == before?,
            "{} was changed",
            path.display()
        );
    }
    Ok(())
}

/// A file that does not fit: what fits is there, and the file system has no fault.
fn full(cell: &Cell) -> Result<()> {
    let large = Files::from([("large.bin".to_string(), noise(5, 12 << 20))]);
    let source = image(cell, "source", FileSystem::Ext(4), &large)?;
    let fat = FileSystem::Fat(12);
    let target = image(cell, "target", fat, &Files::new())?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&target, &source])?;
    let copy = "cp /blk1/large.bin .";
    qemu.script(&format!("{copy}; mkdir x; rm large.bin; mkdir y; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said(copy, "error: /blk0/large.bin: no space is left")?;
    fat.check(&target)?;
    let names = fat.names(&target)?;
    ensure!(names == ["x/", "y/"], "{names:?}");
    Ok(())
}

/// A disk that fails now and then says so, device and all; what it did not fail for is as it should be.
fn disk_fails(cell: &Cell) -> Result<()> {
    let files = Files::from([("a.bin".to_string(), noise(1, 200_000))]);
    let path = image(cell, "disk", FileSystem::Ext(4), &files)?;
    // In the middle of the file.
    let blocks = run("debugfs", &["-R", "blocks /a.bin", utf8(&path)?])?;
    let blocks = String::from_utf8(blocks.stdout)?;
    let block: u64 = blocks
        .split(' ')
        .nth(100)
        .context("too few blocks")?
        .parse()?;
    let sector = 2 * block;
    let rules = cell.file("blkdebug.conf");
    std::fs::write(
        &rules,
        format!(
            "[inject-error]\nevent = \"none\"\niotype = \"read\"\nerrno = \"5\"\nsector = \"{sector}\"\n"
        ),
    )?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.arg(
        "-drive",
        &format!(
            "if=none,id=d,driver=raw,file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={}",
            escape(utf8(&rules)?),
            escape(utf8(&path)?)
        ),
    );
    qemu.virtio("blk", "disk0", "drive=d,werror=report,rerror=report");
    qemu.script("ls /blk0; sha256sum a.bin; ls /blk0; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("ls /blk0", "a.bin")?;
    let output = guest.said("sha256sum a.bin")?;
    let failed = output.starts_with("error: /blk0/a.bin: virtio-blk at ");
    ensure!(failed, "{output:?}");
    Ok(())
}

/// A file system with bytes of its structures replaced at random gives files or errors, and the kernel goes on.
fn corrupt(cell: &Cell, kind: FileSystem) -> Result<()> {
    const DISKS: usize = 20;
    let mut files = tree();
    files.retain(|_, bytes| bytes.len() < 100_000);
    // Where the block is that says what it is, and where most structures are.
    let (label, structures) = match kind {
        FileSystem::Fat(_) => (0..SECTOR, 96 << 10),
        FileSystem::Ext(_) => (1024..2048, 1 << 20),
        // It and its copy have a checksum.
        FileSystem::ExFat => (0..24 * SECTOR, 3 << 20),
    };
    let good = std::fs::read(image(cell, "good", kind, &files)?)?;
    // What is zero says nothing, so that nothing would change.
    let places: Vec<_> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let structures = places.partition_point(|at| *at < structures);
    let mut images = Vec::new();
    for seed in 0..DISKS {
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let mut bytes = good.clone();
        for _ in 0..random.usize(1..1000) {
            let all = random.bool();
            let place = random.usize(..if all { places.len() } else { structures });
            // Most images must get past their first block.
            if seed % 4 == 0 || !label.contains(&places[place]) {
                bytes[places[place]] = random.u8(..);
            }
        }
        let path = cell.file(&format!("bad{seed}.img"));
        std::fs::write(&path, bytes)?;
        images.push(path);
    }
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(
        &mut qemu,
        &images.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
    )?;
    let mut script = Vec::new();
    for disk in 0..DISKS {
        let at = format!("/blk{disk}");
        script.push(format!("ls {at}"));
        script.extend(["many", "a/b/c", "empty"].map(|name| format!("ls {at}/{name}")));
        script.extend(
            files
                .keys()
                .step_by(5)
                .map(|name| format!("sha256sum \"{at}/{name}\"")),
        );
        if let FileSystem::Fat(_) = kind {
            script.push(format!("cp {at}/len-4096.bin {at}/copy.bin"));
            script.push(format!("mkdir {at}/new"));
            script.push(format!("rm {at}/len-513.bin"));
        }
    }
    qemu.script(&format!("{}\necho all done\npoweroff", script.join("\n")));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("echo all done", "all done")?;
    // Some must have been seen to be corrupt, else nothing was tested.
    let lines = guest.console().lines();
    let seen = lines
        .iter()
        .filter(|line| line.text.contains("corrupt"))
        .count();
    ensure!(seen > 3, "{seen} complaints");
    Ok(())
}

/// Clusters of a file that follow each other in a circle.
fn cycle(cell: &Cell) -> Result<()> {
    let kind = FileSystem::Fat(16);
    let files = Files::from([("a.bin".to_string(), noise(1, 200_000))]);
    let path = image(cell, "disk", kind, &files)?;
    let mut bytes = std::fs::read(&path)?;
    let number = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (sector, reserved, tables, sectors) =
        (number(11), number(14), usize::from(bytes[16]), number(22));
    // The file's clusters are 3, 4, 5 and so on, or begin a little later: whichever says that 9 is next says 5 instead.
    for table in 0..tables {
        let start = (reserved + table * sectors) * sector;
        bytes[start + 16..start + 18].copy_from_slice(&5u16.to_le_bytes());
    }
    std::fs::write(&path, bytes)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&path])?;
    qemu.script("sha256sum a.bin; rm a.bin; ls; poweroff");
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said(
        "sha256sum a.bin",
        "error: /blk0/a.bin: the file system is corrupt",
    )
}

/// A number of 32 bits at some place of an image.
fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The numbers of the blocks of a file, by e2fsprogs.
fn blocks_of(image: &Path, file: &str) -> Result<Vec<usize>> {
    let output = run("debugfs", &["-R", &format!("blocks /{file}"), utf8(image)?])?;
    let text = String::from_utf8(output.stdout)?;
    let numbers = text.split_whitespace().map(str::parse);
    Ok(numbers.collect::<Result<_, _>>()?)
}

/// Images made to make a reader ask for more memory than there is, or read past its own: each is an error, the kernel goes
/// on, and the next file system is read as ever.
fn hostile_ext(cell: &Cell) -> Result<()> {
    let mut files = Files::from([("a.txt".to_string(), b"fine".to_vec())]);
    let plain = image(cell, "plain", FileSystem::Ext(2), &files)?;
    for number in 0..200 {
        files.insert(
            format!("d/a name that is long enough to fill blocks {number}"),
            vec![],
        );
    }
    let indexed = image(cell, "indexed", FileSystem::Ext(4), &files)?;
    let good = std::fs::read(&plain)?;
    let write = |name: &str, bytes: &[u8]| -> Result<PathBuf> {
        let path = cell.file(&format!("{name}.img"));
        std::fs::write(&path, bytes)?;
        Ok(path)
    };
    // Blocks of 256 MiB and of 2 GiB; 2^27 groups of blocks.
    let mut blocks = good.clone();
    put(&mut blocks, 1024 + 0x18, 18);
    let mut large_blocks = good.clone();
    put(&mut large_blocks, 1024 + 0x18, 21);
    let mut groups = good.clone();
    put(&mut groups, 1024 + 0x4, u32::MAX);
    put(&mut groups, 1024 + 0x20, 32);
    // A symbolic link to a name of 256 GiB.
    let link = cell.file("link.img");
    std::fs::copy(&plain, &link)?;
    let target = "x".repeat(200);
    let commands = format!("symlink /link {target}\nsif /link size 274877906944\n");
    let script = cell.file("link.debugfs");
    std::fs::write(&script, commands)?;
    run("debugfs", &["-w", "-f", utf8(&script)?, utf8(&link)?])?;
    // An index of a directory that says that it has 65535 entries.
    index_directories(&indexed)?;
    let mut index = std::fs::read(&indexed)?;
    let root = blocks_of(&indexed, "d")?[0] * 1024;
    ensure!(index[root + 0x1d] == 8, "the directory has no index");
    index[root + 0x22..root + 0x24].copy_from_slice(&[0xff, 0xff]);

    let images = [
        write("blocks", &blocks)?,
        write("large-blocks", &large_blocks)?,
        write("groups", &groups)?,
        link,
        write("index", &index)?,
        plain,
    ];
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &images.each_ref().map(PathBuf::as_path))?;
    let bad = [
        "ls /blk0",
        "ls /blk1",
        "ls /blk2",
        "cat /blk3/link",
        "ls /blk4/d",
    ];
    qemu.script(&format!(
        "{}; cat /blk5/a.txt; mem; poweroff",
        bad.join("; ")
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    for command in bad {
        guest.check_said(command, "error: /blk")?;
    }
    ensure!(guest.said("cat /blk5/a.txt")? == "fine");
    Ok(())
}

/// A file whose extents are a tree of five levels, all of whose branches lead to the same twig without a leaf: to look for
/// its blocks takes for ever, and never waits for the disk. It is given up after a while.
fn endless_ext(cell: &Cell) -> Result<()> {
    let files = Files::from([
        ("a.bin".to_string(), noise(3, 20_000)),
        ("b.txt".to_string(), b"fine".to_vec()),
    ]);
    let kind = FileSystem::Ext(4);
    let path = image(cell, "disk", kind, &files)?;
    // No checksums in the way.
    let output = run("tune2fs", &["-O", "^metadata_csum", utf8(&path)?]);
    output.context("taking the checksums away")?;
    let blocks = blocks_of(&path, "a.bin")?;
    let inode = run("debugfs", &["-R", "imap /a.bin", utf8(&path)?])?;
    let inode = String::from_utf8(inode.stdout)?;
    let (_, place) = inode.split_once("located at block ").context("no inode")?;
    let (block, offset) = place.trim().split_once(", offset 0x").context("no place")?;
    let inode = block.parse::<usize>()? * 1024 + usize::from_str_radix(offset, 16)?;

    let mut bytes = std::fs::read(&path)?;
    let header = |entries: u16, most: u16, depth: u16| {
        let fields = [0xf30a, entries, most, depth, 0, 0];
        fields.map(u16::to_le_bytes).concat()
    };
    // In the inode: one entry that leads to the first block; from there on 84 that lead to the next.
    let levels = 5;
    let entry = |first: u32, block: usize| {
        let mut entry = [0; 12];
        entry[..4].copy_from_slice(&first.to_le_bytes());
        entry[4..8].copy_from_slice(&(block as u32).to_le_bytes());
        entry
    };
    bytes[inode + 40..inode + 52].copy_from_slice(&header(1, 4, levels));
    bytes[inode + 52..inode + 64].copy_from_slice(&entry(0, blocks[0]));
    for level in 0..levels {
        let start = blocks[usize::from(level)] * 1024;
        let depth = levels - 1 - level;
        bytes[start..start + 12].copy_from_slice(&header(84, 84, depth));
        for number in 0..84 {
            let at = start + 12 + 12 * number;
            // A leaf has a first block, a length (of nothing) and a place.
            let next = blocks.get(usize::from(level) + 1).copied().unwrap_or(0);
            let entry = if depth > 0 { entry(0, next) } else { [0; 12] };
            bytes[at..at + 12].copy_from_slice(&entry);
        }
    }
    std::fs::write(&path, bytes)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&path])?;
    let endless = "sha256sum /blk0/a.bin";
    qemu.script(&format!("{endless}; cat /blk0/b.txt; poweroff"));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said(
        endless,
        "error: /blk0/a.bin: the file system is corrupt: its reader gave up",
    )?;
    ensure!(guest.said("cat /blk0/b.txt")? == "fine");
    let lines = guest.console().lines();
    let told = lines
        .iter()
        .any(|line| line.text.contains("without waiting"));
    ensure!(told, "the log does not say why");
    Ok(())
}

/// A partition that is all of its disk is the same file system by another name, and known to be.
fn two_names(cell: &Cell) -> Result<()> {
    let fat = FileSystem::Fat(16);
    let files = Files::from([("a.bin".to_string(), noise(1, 100_000))]);
    let path = image(cell, "disk", fat, &files)?;
    let mut bytes = std::fs::read(&path)?;
    // The first entry of the table: a FAT from the first block to the last.
    let sectors = (bytes.len() / SECTOR) as u32;
    bytes[446..462].copy_from_slice(&[0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    put(&mut bytes, 446 + 12, sectors);
    std::fs::write(&path, &bytes)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    attach(&mut qemu, &[&path])?;
    let onto_itself = "cp /blk0/a.bin /blk0p1/a.bin";
    qemu.script(&format!(
        "ls /blk0p1; {onto_itself}; cp /blk0p1/a.bin /blk0/b.bin; sha256sum /blk0p1/b.bin; poweroff"
    ));
    let mut guest = cell.boot(qemu)?;
    guest.ends_with(&End::PowerOff)?;
    guest.check_said("ls /blk0p1", "100000  a.bin")?;
    guest.check_said(
        onto_itself,
        "error: /blk0p1/a.bin: is the file that is read",
    )?;
    guest.check_said("sha256sum /blk0p1/b.bin", &sha256(&noise(1, 100_000)))?;
    fat.check(&path)?;
    ensure!(fat.read(&path, "a.bin")? == noise(1, 100_000));
    Ok(())
}
