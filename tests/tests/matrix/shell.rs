//! The shell as a person at a terminal sees it: what keys do, what is shown while something takes its time, and that none of
//! this is there where there is no terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::console::PROMPT;
use vringlet_tests::disk::{Disk, MIB};
use vringlet_tests::guest::End;
use vringlet_tests::images::{FileSystem, Files, run};
use vringlet_tests::qemu::{Image, Qemu, escape, utf8};
use vringlet_tests::terminal::Terminal;

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    vec![
        Spec::new("q35/shell/complete", complete),
        Spec::new("q35/shell/complete-slowly", complete_slowly),
        Spec::new("q35/shell/history", history),
        Spec::new("q35/shell/narrow", narrow),
        Spec::new("q35/shell/progress", progress),
        Spec::new("q35/shell/progress-of-each", progress_of_each),
        Spec::new("q35/shell/no-terminal", no_terminal),
        Spec::new("q35/shell/names-of-arguments", names_of_arguments),
        Spec::new("q35/shell/times/fat", |cell| {
            times(cell, FileSystem::Fat(16))
        }),
        Spec::new("q35/shell/times/ext4", |cell| {
            times(cell, FileSystem::Ext(4))
        }),
    ]
}

const COLUMNS: u16 = 80;
/// What the guest asks its terminal at each prompt.
const WHERE: &[u8] = b"\x1b[6n";

/// A guest with a disk, on a terminal.
fn boot(cell: &Cell, terminal: &Terminal, mut qemu: Qemu, kind: &str) -> Result<Booted> {
    qemu.cmdline(&format!("terminal={kind}"));
    let mut guest = cell.boot_on(terminal, qemu)?;
    guest.expect_prompt()?;
    Ok(guest)
}

/// Waits until the line that is typed looks like this.
fn typed(terminal: &Terminal, line: &str) -> Result<()> {
    let wanted = format!("{PROMPT}{line}");
    let seen = terminal.wait_for_last_row(|row| row == wanted.trim_end());
    seen.with_context(|| format!("{line:?} is not what was typed"))
}

fn files() -> Files {
    let mut files = Files::new();
    for name in [
        "two words.txt",
        "two wolves.txt",
        "Grüße 漢字.txt",
        "notes.txt",
        "music/tone.wav",
        "music/deep/it's.txt",
    ] {
        files.insert(name.into(), format!("this is {name}\n").into_bytes());
    }
    for number in 0..300 {
        files.insert(format!("many/f{number:03}"), Vec::new());
    }
    files
}

fn disk_with_files(cell: &Cell, kind: FileSystem) -> Result<PathBuf> {
    let path = cell.file("disk.img");
    kind.make(&path, 24, "LABEL", &files())?;
    Ok(path)
}

fn complete(cell: &Cell) -> Result<()> {
    let path = disk_with_files(cell, FileSystem::Fat(16))?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", &path, Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    let terminal = Terminal::new(COLUMNS);
    let mut guest = boot(cell, &terminal, qemu, "plain")?;
    let mut check = |keys: &str, line: &str| {
        guest.type_keys(keys)?;
        typed(&terminal, line)
    };
    // A command, an operation, a device, an option.
    check("sha\t", "sha256sum ")?;
    check("\x15blk ha\tb\tde\t1\r", "")?;
    // A name with blanks is quoted, as far as there is no doubt, then to its end.
    check("cat t\t", "cat \"two wo")?;
    check("r\t", "cat \"two words.txt\" ")?;
    check("\r", "")?;
    check("cat \"Gr\t\r", "")?;
    check("cat mu\td\ti\t\r", "")?;
    // In the middle of a line.
    check("cat n | \x1b[D\x1b[D\x1b[D\t", "cat notes.txt  | ")?;
    check("\x15\x0b", "")?;
    // A directory goes on; `cd` is offered nothing else.
    check("cd mus\tt\t", "cd music/t")?;
    check("\x15cat mus\tt\t", "cat music/tone.wav ")?;
    check("\x15cat /\t", "cat /blk0/")?;
    // Nothing begins so.
    check("\x15cat nothing\t\t", "cat nothing")?;
    // Many: shown, and the line again.
    check("\x15cat many/\t", "cat many/")?;
    check("\x15echo done\r", "")?;
    let rows = terminal.rows();
    let has = |row: &str| rows.iter().any(|it| it == row);
    for row in [
        "this is two words.txt",
        "this is Grüße 漢字.txt",
        "this is music/deep/it's.txt",
        "vringlet> blk hash blk0 depth=1",
        "... and more",
        "done",
    ] {
        ensure!(has(row), "no row {row:?}");
    }
    // As many as are looked for, in the order of their names and in columns.
    let listed: Vec<_> = rows
        .iter()
        .filter(|row| row.starts_with('f') && row.len() < COLUMNS.into())
        .flat_map(|row| row.split_whitespace())
        .collect();
    ensure!(listed.len() == 200 && listed.is_sorted(), "{listed:?}");
    guest.power_off()
}

/// A disk that takes its time: Ctrl-C ends the wait, what is typed is not lost, and a message meanwhile spoils nothing.
fn complete_slowly(cell: &Cell) -> Result<()> {
    let path = disk_with_files(cell, FileSystem::Ext(4))?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    // A piece of 64 KiB takes most of a minute.
    slow_drive(&mut qemu, &path, 1500)?;
    qemu.user_net("net0", &[]);
    qemu.virtio("net", "nic0", "netdev=net0");
    let terminal = Terminal::new(COLUMNS);
    let mut guest = boot(cell, &terminal, qemu, "plain")?;
    guest.eventually("net0: address 10.0.2.15")?;
    guest.type_keys("cat /blk0/no\txyz")?;
    typed(&terminal, "cat /blk0/no")?;
    set_link(&mut guest, false)?;
    guest.eventually("net0: link down")?;
    guest.type_keys("\x03")?;
    typed(&terminal, "cat /blk0/no")?;
    guest.type_keys("thing\x15echo alive\r")?;
    guest.eventually("alive")?;
    let rows = terminal.rows();
    let message = rows.iter().find(|row| row.contains("net0: link down"));
    let message = message.context("no message")?;
    ensure!(message.starts_with('['), "{message:?}");
    guest.power_off()
}

fn slow_drive(qemu: &mut Qemu, path: &Path, bytes_per_second: u64) -> Result<()> {
    let file = escape(utf8(path)?);
    let throttle = format!("throttling.bps-total={bytes_per_second}");
    qemu.arg(
        "-drive",
        &format!("if=none,id=d0,format=raw,file={file},{throttle}"),
    );
    qemu.virtio("blk", "disk0", "drive=d0");
    Ok(())
}

fn set_link(guest: &mut Booted, up: bool) -> Result<()> {
    let qmp = &mut guest.process().qmp;
    qmp.execute("set_link", json!({ "name": "nic0", "up": up }))?;
    Ok(())
}

/// Ctrl-R, words, and lines that are pasted, tabs and all.
fn history(cell: &Cell) -> Result<()> {
    let terminal = Terminal::new(COLUMNS);
    let mut guest = boot(
        cell,
        &terminal,
        cell.qemu(&"q35".parse()?, MEMORY)?,
        "plain",
    )?;
    guest.command("echo first", "first")?;
    guest.command("echo second", "second")?;
    guest.expect_prompt()?;
    guest.type_keys("\x12fir")?;
    let shown = |wanted: &'static str| terminal.wait_for_last_row(move |row| row == wanted);
    shown("(search)`fir': echo first")?;
    guest.type_keys("st again\x12")?;
    shown("(failed search)`first again': echo first")?;
    guest.type_keys("\x05 and more\r")?;
    guest.eventually("first and more")?;
    typed(&terminal, "")?;
    guest.type_keys("\x1b[200~echo\tpasted\recho pasted too\x1b[201~\x1b[1;5Dnot \r")?;
    guest.eventually("pasted not too")?;
    let rows = terminal.rows();
    ensure!(rows.iter().any(|row| row == "pasted"), "no `pasted`");
    // What does not fit is not run in part.
    typed(&terminal, "")?;
    guest.type_keys(&format!("echo {}\r", "x".repeat(2000)))?;
    guest.eventually("error: a line has 1024 characters at the most")?;
    typed(&terminal, "")?;
    // Pastes are marked at the prompt alone.
    guest.command("history", "echo first")?;
    let bytes = terminal.bytes();
    let count = |text: &[u8]| bytes.windows(text.len()).filter(|it| *it == text).count();
    let (on, off) = (count(b"\x1b[?2004h"), count(b"\x1b[?2004l"));
    ensure!(on == off || on == off + 1, "{on} times on, {off} times off");
    guest.power_off()
}

/// A window that is narrower than the line, and becomes wider: one row, whatever is typed and logged.
fn narrow(cell: &Cell) -> Result<()> {
    const NARROW: u16 = 40;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.user_net("net0", &[]);
    qemu.virtio("net", "nic0", "netdev=net0");
    let terminal = Terminal::new(NARROW);
    let mut guest = boot(cell, &terminal, qemu, "color")?;
    guest.eventually("net0: address fec0")?;
    guest.eventually("net0: address 10.0.2.15")?;
    terminal.wait_for_bytes(WHERE, 1)?;
    guest.type_keys("\x1b[1;40R")?;
    let before = terminal.rows().len();
    let line = "echo 0123456789 0123456789 0123456789 漢字漢字 end";
    guest.type_keys(line)?;
    terminal.wait_for_last_row(|row| row.starts_with("vringlet> <") && row.ends_with(" end"))?;
    ensure!(terminal.column() < NARROW - 1);
    guest.type_keys("\x01")?;
    terminal
        .wait_for_last_row(|row| row.starts_with("vringlet> echo 0123") && row.ends_with('>'))?;
    ensure!(terminal.rows().len() == before, "the line has two rows");
    set_link(&mut guest, false)?;
    guest.eventually("net0: link down")?;
    terminal
        .wait_for_last_row(|row| row.starts_with("vringlet> echo 0123") && row.ends_with('>'))?;
    guest.type_keys("\r")?;
    guest.eventually("0123456789 0123456789 0123456789 漢字漢字 end")?;
    guest.command("terminal", "terminal: color, 40 columns")?;
    // The next answer counts.
    guest.expect_prompt()?;
    guest.type_keys("\x1b[1;100R")?;
    guest.command("terminal", "terminal: color, 100 columns")?;
    guest.power_off()
}

/// The line that says how far it is: it changes in place, gives way to messages, goes at the end and by Ctrl-C.
fn progress(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), 16 * MIB, 3)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    slow_drive(&mut qemu, disk.path(), 2 << 20)?;
    qemu.user_net("net0", &[]);
    qemu.virtio("net", "nic0", "netdev=net0");
    let terminal = Terminal::new(COLUMNS);
    let mut guest = boot(cell, &terminal, qemu, "color")?;
    guest.eventually("net0: address fec0")?;
    guest.type_line("blk hash blk0")?;
    let begun = |row: &str| row.contains(" % ") && row.contains(" MiB of 16.0 MiB, ");
    for (up, message) in [(false, "net0: link down"), (true, "net0: link up")] {
        terminal.wait_for_last_row(begun)?;
        set_link(&mut guest, up)?;
        guest.expect(message)?;
    }
    terminal.wait_for_last_row(begun)?;
    guest.expect("sha256=")?;
    guest.expect_prompt()?;
    // What is left on the screen has not a trace of it.
    let rows = terminal.rows();
    ensure!(!rows.iter().any(|row| row.contains('%')), "{rows:?}");
    let hashed = format!("sha256={}", disk.sha256());
    ensure!(rows.contains(&hashed), "no row {hashed:?}");
    for message in ["net0: link down", "net0: link up"] {
        let whole = |row: &&String| row.starts_with('[') && row.ends_with(message);
        ensure!(rows.iter().any(|row| whole(&row)), "no row {message:?}");
    }
    // Ctrl-C.
    guest.type_line("blk verify blk0 0 32768 3")?;
    terminal.wait_for_last_row(begun)?;
    guest.interrupt()?;
    guest.expect_prompt()?;
    let rows = terminal.rows();
    ensure!(!rows.iter().any(|row| row.contains('%')), "{rows:?}");
    ensure!(rows.iter().any(|row| row == "^C"), "no row ^C");
    // In the background there is none.
    let drawn = b"MiB of 16.0 MiB";
    let count = |bytes: Vec<u8>| bytes.windows(drawn.len()).filter(|it| *it == drawn).count();
    let before = count(terminal.bytes());
    guest.type_line("bg blk hash blk0")?;
    guest.type_keys("echo typed mean")?;
    guest.expect(&hashed)?;
    ensure!(count(terminal.bytes()) == before, "shown in the background");
    // Its result has a row of its own, and the line that is typed is there again.
    typed(&terminal, "echo typed mean")?;
    guest.type_keys("while\r")?;
    guest.expect("typed meanwhile")?;
    let rows = terminal.rows();
    let results = rows.iter().filter(|row| **row == hashed).count();
    ensure!(results == 2, "{results} rows with the hash");
    guest.power_off()?;
    disk.check()
}

/// Each command that can take long says how far it is, and leaves nothing of that behind.
fn progress_of_each(cell: &Cell) -> Result<()> {
    const RATE: u64 = 1 << 20;
    let text = "a line of text\n".repeat(150_000);
    let mut files = Files::new();
    files.insert("text.txt".into(), text.into_bytes());
    let path = cell.file("disk.img");
    FileSystem::Fat(16).make(&path, 24, "LABEL", &files)?;
    let memory = cell.file("pmem.img");
    File::create(&memory)?.set_len(256 << 20)?;
    let (port, server) = slow_server()?;
    let mut qemu = cell.qemu(&"q35".parse()?, "128M,slots=2,maxmem=2G")?;
    slow_drive(&mut qemu, &path, RATE)?;
    qemu.persistent_memory("pmem0", &memory, "")?;
    qemu.user_net("net0", &[]);
    qemu.virtio("net", "nic0", "netdev=net0");
    let terminal = Terminal::new(COLUMNS);
    let mut guest = boot(cell, &terminal, qemu, "plain")?;
    guest.eventually("net0: address 10.0.2.15")?;
    for (command, shows, result) in [
        ("cat text.txt", " of 2.1 MiB, ", "a line of text"),
        ("sha256sum text.txt", " of 2.1 MiB, ", "  /blk0/text.txt"),
        (
            "cp text.txt copy.txt",
            " of 2.1 MiB, ",
            "/blk0/copy.txt: 2250000 bytes",
        ),
        (
            "blk hash blk0 sector=0 count=4k",
            " of 2.0 MiB, ",
            "sha256=",
        ),
        (
            "blk fill blk0 24k 4k 1",
            " of 2.0 MiB, ",
            "filled sectors=4096",
        ),
        (
            "blk verify blk0 24k 4k 1",
            " of 2.0 MiB, ",
            "verified sectors=4096",
        ),
        (
            "pmem fill pmem0 0 256M 1",
            " of 256.0 MiB, ",
            "filled bytes=268435456",
        ),
        (
            "pmem verify pmem0 0 256M 1",
            " of 256.0 MiB, ",
            "verified bytes=268435456",
        ),
        ("pmem hash pmem0", " of 256.0 MiB, ", "sha256="),
        (
            &format!("fetch http://10.0.2.2:{port}/"),
            " of 96.0 KiB, ",
            "status=200 bytes=",
        ),
    ] {
        guest.expect_prompt()?;
        let before = terminal.bytes().len();
        guest.type_line(command)?;
        guest.expect(result)?;
        guest.expect_prompt()?;
        let bytes = terminal.bytes();
        let shown = String::from_utf8_lossy(bytes.get(before..).unwrap_or_default());
        ensure!(
            shown.contains(shows),
            "{command} does not say how far it is"
        );
        let rows = terminal.rows();
        let left = rows.iter().find(|row| row.contains(" MiB/s"));
        ensure!(left.is_none(), "{command} left {left:?}");
    }
    server.join().ok().context("the server failed")??;
    guest.power_off()
}

/// Gives one client a page that takes its time.
fn slow_server() -> Result<(u16, JoinHandle<Result<()>>)> {
    const PIECES: usize = 12;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept()?;
        let piece = vec![b'x'; 8192];
        let len = PIECES * piece.len();
        let request = BufReader::new(client.try_clone()?).lines();
        for line in request {
            if line?.is_empty() {
                break;
            }
        }
        write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n")?;
        for _ in 0..PIECES {
            std::thread::sleep(Duration::from_millis(150));
            client.write_all(&piece)?;
        }
        Ok(())
    });
    Ok((port, server))
}

/// Where nothing says that there is a terminal, the same commands write nothing but their results.
fn no_terminal(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), 4 * MIB, 3)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    slow_drive(&mut qemu, disk.path(), 2 << 20)?;
    qemu.script("terminal; blk hash blk0; blk verify blk0 0 8192 3; no such command");
    let terminal = Terminal::new(COLUMNS);
    let mut guest = cell.boot_on(&terminal, qemu)?;
    guest.expect_prompt()?;
    guest.check_said("terminal", "terminal: none")?;
    guest.check_said("blk hash blk0", &disk.sha256())?;
    guest.check_said("no such command", "error: no command no")?;
    let bytes = terminal.bytes();
    let escapes = bytes.iter().filter(|byte| **byte == 0x1b).count();
    ensure!(escapes == 0, "{escapes} escape sequences");
    ensure!(!bytes.contains(&b'%'), "a line of progress");
    guest.power_off()
}

/// What may be left out has a name, and the older way to say it is still understood.
fn names_of_arguments(cell: &Cell) -> Result<()> {
    let disk = Disk::create(cell.file("disk.img"), MIB, 4)?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.drive("d0", disk.path(), Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    qemu.virtio("rng", "rng0", "");
    qemu.user_net("net0", &[]);
    qemu.virtio("net", "nic0", "netdev=net0");
    let alike = [
        ["blk read blk0 8 2", "blk read blk0 8 count=2"],
        ["blk hash blk0 8 16", "blk hash sector=8 blk0 count=16"],
        [
            "blk verify blk0 8 16 4",
            "blk verify blk0 count=16 seed=4 sector=8",
        ],
        ["net promisc on net0", "net promisc on card=net0"],
    ];
    let script = alike.concat().join("; ");
    qemu.script(&format!("strict; {script}; rng 16; rng bytes=16"));
    let mut guest = cell.boot(qemu)?;
    guest.eventually("net0: address 10.0.2.15")?;
    guest.expect_prompt()?;
    for [old, new] in alike {
        let (old, new) = (guest.said(old)?, guest.said(new)?);
        ensure!(!old.is_empty() && old == new, "{old:?} is not {new:?}");
    }
    guest.check_said("rng bytes=16", "0000000000  ")?;
    guest.command("ping 10.0.2.2 3", "3 sent, 3 received")?;
    guest.command("ping 10.0.2.2 count=2", "2 sent, 2 received")?;
    guest.command("ping count=1 10.0.2.2", "1 sent, 1 received")?;
    guest.command("ping 10.0.2.2 count=1 2", "`2` is one word too many")?;
    guest.type_line("poweroff status=3")?;
    guest.ends_with(&End::DebugExit(3))
}

/// `ls -l`: the times that the host's tools put there, as `ls` shows them, in columns.
fn times(cell: &Cell, kind: FileSystem) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let day = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86400);
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    // Days since 1970. The guest's clock says 2026-11-27 12:00.
    let mut files = vec![
        (
            "a.txt",
            5,
            day(20783) + minutes(23 * 60 + 58),
            "Nov 26 23:58",
        ),
        ("b.bin", 123_456, day(20602) + minutes(5), "May 29 00:05"),
        ("c.txt", 0, day(20601) + minutes(20 * 60), "May 28  2026"),
        (
            "d.txt",
            12,
            day(20784) + minutes(12 * 60 + 30),
            "Nov 27  2026",
        ),
        ("e.txt", 12, day(3652), "Jan  1  1980"),
    ];
    if kind == FileSystem::Ext(4) {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(86400);
        files.push(("f.txt", 1, before, "Dec 31  1969"));
    }
    let path = cell.file("disk.img");
    for (name, len, time, _) in &files {
        let file = tree.path().join(name);
        std::fs::write(&file, vec![b'x'; *len])?;
        File::options()
            .write(true)
            .open(&file)?
            .set_modified(*time)?;
    }
    File::create(&path)?.set_len(24 << 20)?;
    let image = utf8(&path)?;
    match kind {
        FileSystem::Fat(_) => {
            run("mkfs.fat", &["-F", "16", image])?;
            for (name, ..) in &files {
                let file = tree.path().join(name);
                run("mcopy", &["-i", image, "-m", utf8(&file)?, "::"])?;
            }
        }
        FileSystem::Ext(_) => {
            let tree = utf8(tree.path())?;
            run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree, image])?;
        }
        FileSystem::ExFat => anyhow::bail!("exfatprogs copy no files"),
    }
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.arg("-rtc", "base=2026-11-27T12:00:00");
    qemu.drive("d0", &path, Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    qemu.script("strict; date; ls -l /blk0; ls -l /blk0/a.txt; ls /blk0/a.txt");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let said = guest.said("ls -l /blk0")?;
    let mut lines: Vec<&str> = said.lines().collect();
    // Its time is when the image was made.
    lines.retain(|line| !line.contains("lost+found"));
    let expected: Vec<_> = files
        .iter()
        .map(|(name, len, _, time)| format!("{len:>6}  {time}  {name}"))
        .collect();
    let date = guest.said("date")?;
    ensure!(lines == expected, "at {date}: {lines:#?}");
    guest.check_said("ls -l /blk0/a.txt", "5  Nov 26 23:58  a.txt")?;
    guest.check_said("ls /blk0/a.txt", &format!("{:>12}  a.txt", 5))?;
    guest.power_off()
}
