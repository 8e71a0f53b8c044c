//! Commands for files: ls, cd, cat, cp, mv, rm, mkdir, rmdir, sha256sum.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use chrono::{NaiveDateTime, TimeDelta};
use embassy_futures::yield_now;
use sha2::{Digest, Sha256};

use crate::apps::files::path::Shown;
use crate::apps::files::{self, Entry, ErrorKind, File, Kind, PIECE, Path, Summary};
use crate::platform::{serial, time};
use crate::shell::progress::Progress;
use crate::shell::{Args, Command, Error, Output, dump};

pub(in crate::shell) const COMMANDS: &[Command] = &[
    Command {
        name: "ls",
        usage: &["ls [-l] [PATH]"],
        help: "lists a directory, with -l by times, too; `ls /` lists the volumes, which are named after their devices",
        run: |args, out| Box::pin(ls(args, out)),
    },
    Command {
        name: "cd",
        usage: &["cd [DIRECTORY]"],
        help: "makes a directory the one that paths without a leading / begin in, or says which it is",
        run: |args, out| Box::pin(cd(args, out)),
    },
    Command {
        name: "cat",
        usage: &["cat FILE"],
        help: "shows a file",
        run: |args, out| Box::pin(cat(args, out)),
    },
    Command {
        name: "cp",
        usage: &["cp FILE TO"],
        help: "copies a file to a file or into a directory; what TO had is overwritten",
        run: |args, out| Box::pin(cp(args, out)),
    },
    Command {
        name: "mv",
        usage: &["mv FROM TO"],
        help: "gives a file or directory another name or place on its volume",
        run: |args, _| Box::pin(mv(args)),
    },
    Command {
        name: "rm",
        usage: &["rm FILE"],
        help: "removes a file",
        run: |args, _| Box::pin(rm(args)),
    },
    Command {
        name: "mkdir",
        usage: &["mkdir DIRECTORY"],
        help: "makes a directory",
        run: |args, _| Box::pin(mkdir(args)),
    },
    Command {
        name: "rmdir",
        usage: &["rmdir DIRECTORY"],
        help: "removes an empty directory",
        run: |args, _| Box::pin(rmdir(args)),
    },
    Command {
        name: "sha256sum",
        usage: &["sha256sum FILE"],
        help: "hashes a file",
        run: |args, out| Box::pin(sha256sum(args, out)),
    },
];

/// Digits of a size that the short list has room for.
const SIZE_DIGITS: usize = 12;
/// `ls` leaves the time of day out of times that are not so recent: half of 365.2425 days.
const HALF_A_YEAR: TimeDelta = TimeDelta::seconds(15_778_476);
/// Bytes that are shown before the console is waited for. What is no text takes three times as many, and there must be room
/// for them in the half of its queue that is free then.
const SHOWN_PIECE: usize = 8 << 10;

/// The next word as a path.
pub(super) async fn path(args: &mut Args<'_>, name: &str) -> Result<Path, Error> {
    Ok(files::locate(args.word(name)?).await)
}

/// The next word as a path, and the last.
async fn only_path(mut args: Args<'_>, name: &str) -> Result<Path, Error> {
    let path = path(&mut args, name).await?;
    args.end()?;
    Ok(path)
}

async fn ls(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let long = args.switch("-l");
    let path = match args.next_word() {
        Some(word) => files::locate(word).await,
        None => files::working_directory().await,
    };
    args.end()?;
    if path.volume().is_none() {
        for volume in files::volumes().await {
            show_volume(&volume, out)?;
        }
        return Ok(());
    }
    let entry = files::entry(&path).await?;
    let entries = match entry.kind {
        Kind::Directory => files::list(&path).await?,
        _ => Vec::from([entry]),
    };
    let digits = |entry: &Entry| entry.size.checked_ilog10().unwrap_or(0) as usize + 1;
    let width = match long {
        true => entries.iter().map(digits).max().unwrap_or(0),
        false => SIZE_DIGITS,
    };
    let now = time::wall().map(|now| now.naive_utc());
    for entry in entries {
        serial::room().await;
        match entry.kind {
            Kind::File => write!(out, "{:>width$}", entry.size)?,
            _ => write!(out, "{:width$}", "")?,
        }
        if long {
            write!(out, "  {:12}", Modified(entry.modified, now))?;
        }
        show_name(&entry, out)?;
    }
    Ok(())
}

/// A time as `ls` shows it: with the time of day if it is of the last half year, else with the year.
struct Modified(Option<NaiveDateTime>, Option<NaiveDateTime>);

impl fmt::Display for Modified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Some(time), now) = self else {
            return f.pad("");
        };
        let age = now.map(|now| now.signed_duration_since(*time));
        let is_recent = age.is_some_and(|age| (TimeDelta::zero()..HALF_A_YEAR).contains(&age));
        let shown = match is_recent {
            true => time.format("%b %e %H:%M"),
            false => time.format("%b %e  %Y"),
        };
        f.pad(&shown.to_string())
    }
}

fn show_volume(volume: &Summary, out: Output<'_>) -> Result<(), Error> {
    let Summary {
        name,
        size,
        kind,
        contents,
    } = volume;
    let kib = size >> 10;
    match (contents, kind) {
        (Ok(contents), None) => writeln!(out, "/{name}: {kib} KiB, {contents}")?,
        (Ok(contents), Some(kind)) => writeln!(out, "/{name}: {kib} KiB, {contents} ({kind})")?,
        (Err(error), None) => writeln!(out, "{error} ({kib} KiB)")?,
        (Err(error), Some(kind)) => writeln!(out, "{error} ({kib} KiB, {kind})")?,
    }
    Ok(())
}

/// The rest of a line: the name; a directory's ends in a slash, a link's in an at sign.
fn show_name(entry: &Entry, out: Output<'_>) -> Result<(), Error> {
    let name = Shown(&entry.name);
    match entry.kind {
        Kind::File => writeln!(out, "  {name}")?,
        Kind::Directory => writeln!(out, "  {name}/")?,
        Kind::Link => writeln!(out, "  {name}@")?,
        Kind::Other => writeln!(out, "  {name} (no file)")?,
    }
    Ok(())
}

async fn cd(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let word = args.next_word();
    args.end()?;
    match word {
        Some(word) => files::change_directory(files::locate(word).await).await?,
        None => writeln!(out, "{}", files::working_directory().await)?,
    }
    Ok(())
}

/// Shows text. Bytes that are no text and would upset a terminal are shown as such.
async fn cat(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let progress = args.progress();
    let mut file = files::open(&only_path(args, "FILE").await?).await?;
    let progress = progress.of(file.size());
    let mut pending: Vec<u8> = Vec::new();
    let mut text = String::new();
    loop {
        let bytes = file.read(SHOWN_PIECE).await?;
        let at_end = bytes.is_empty();
        pending.extend_from_slice(&bytes);
        // A character may be cut in two where a piece ends.
        let whole = match core::str::from_utf8(&pending) {
            Err(error) if error.error_len().is_none() && !at_end => error.valid_up_to(),
            _ => pending.len(),
        };
        let rest = pending.split_off(whole);
        let characters = String::from_utf8_lossy(&pending);
        let characters = characters.chars().filter(|it| *it != '\r');
        text.extend(characters.map(|it| match it {
            '\n' | '\t' => it,
            control if control.is_control() => char::REPLACEMENT_CHARACTER,
            it => it,
        }));
        pending = rest;
        if at_end {
            break;
        }
        // Whole lines, so that there may be a line of progress below them; of a very long one all but the last character.
        let lines = match text.rfind('\n') {
            Some(end) => end + 1,
            None if text.len() > SHOWN_PIECE => text.char_indices().last().map_or(0, |(at, _)| at),
            None => 0,
        };
        let rest = text.split_off(lines);
        out.write_str(&text)?;
        text = rest;
        serial::room().await;
        progress.add(bytes.len() as u64);
        yield_now().await;
    }
    drop(progress);
    out.write_str(&text)?;
    if !text.is_empty() && !text.ends_with('\n') {
        writeln!(out)?;
    }
    Ok(())
}

async fn cp(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let progress = args.progress();
    let from = path(&mut args, "FILE").await?;
    let to = path(&mut args, "TO").await?;
    args.end()?;
    let to = into_directory(&from, to).await?;
    let mut source = files::open(&from).await?;
    let progress = progress.of(source.size());
    let mut target = files::create(&to, Some(&source)).await?;
    let mut copied = 0;
    loop {
        let bytes = source.read(PIECE).await?;
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len() as u64;
        copied += len;
        target.write(bytes).await?;
        progress.add(len);
    }
    target.close().await?;
    drop(progress);
    writeln!(out, "{to}: {copied} bytes")?;
    Ok(())
}

/// Where something goes when it is to go there: into a directory under its own name, else just there.
async fn into_directory(from: &Path, to: Path) -> Result<Path, Error> {
    match (files::kind(&to).await, from.name()) {
        (Ok(Kind::Directory), Some(name)) => Ok(to.join(name)),
        (Err(error), _) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(to),
    }
}

async fn mv(mut args: Args<'_>) -> Result<(), Error> {
    let from = path(&mut args, "FROM").await?;
    let to = path(&mut args, "TO").await?;
    args.end()?;
    let to = into_directory(&from, to).await?;
    Ok(files::rename(&from, &to).await?)
}

async fn rm(args: Args<'_>) -> Result<(), Error> {
    let path = only_path(args, "FILE").await?;
    Ok(files::remove_file(&path).await?)
}

async fn mkdir(args: Args<'_>) -> Result<(), Error> {
    let path = only_path(args, "DIRECTORY").await?;
    Ok(files::make_directory(&path).await?)
}

async fn rmdir(args: Args<'_>) -> Result<(), Error> {
    let path = only_path(args, "DIRECTORY").await?;
    Ok(files::remove_directory(&path).await?)
}

async fn sha256sum(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let progress = args.progress();
    let path = only_path(args, "FILE").await?;
    let mut file = files::open(&path).await?;
    let hash = sha256(&mut file, progress).await?;
    dump::hexadecimal(out, &hash)?;
    writeln!(out, "  {path}")?;
    Ok(())
}

async fn sha256(file: &mut File, progress: Progress) -> Result<[u8; 32], Error> {
    let progress = progress.of(file.size());
    let mut sha256 = Sha256::new();
    loop {
        let bytes = file.read(PIECE).await?;
        if bytes.is_empty() {
            return Ok(sha256.finalize().into());
        }
        sha256.update(&bytes);
        progress.add(bytes.len() as u64);
        yield_now().await;
    }
}
