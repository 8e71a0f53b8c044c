//! The commands of persistent memory: pmem, with an operation as its first word.

mod bench;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use embassy_futures::yield_now;
use sha2::{Digest, Sha256};

use self::bench::Access;
use super::bench::places::Places;
use super::bench::{either, rw};
use super::blk::pattern;
use crate::apps::store;
use crate::devices::pmem::{self, Pmem};
use crate::platform::time;
use crate::shell::progress::Progress;
use crate::shell::{Args, Command, Error, Output, dump};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "pmem",
    usage: &[
        "pmem info [NAME]",
        "pmem read NAME OFFSET [len=N]",
        "pmem write NAME OFFSET TEXT",
        "pmem fill NAME OFFSET LEN SEED",
        "pmem verify NAME OFFSET LEN SEED",
        "pmem hash NAME [offset=O len=N]",
        "pmem flush NAME",
        "pmem format NAME [size=BYTES] [force]",
        "pmem bench NAME [iodepth=D] [count=N]",
        "pmem bench NAME rw=read|write|randread|randwrite [bs=BYTES] [count=N] [fsync=N]",
    ],
    help: "reads, writes and measures persistent memory; what is written is safe after flush; format makes it the store; \
           bench without rw leaves everything as it was",
    run: |args, out| Box::pin(run(args, out)),
}];

/// Bytes that `read` shows where nothing is said, and the most.
const READ_BYTES: u64 = 256;
const MAX_READ_BYTES: u64 = 64 << 10;
/// Bytes that are worked on before others have their turn: whole sectors of the pattern.
const PIECE: u64 = 64 << 10;
const SECTOR: u64 = pattern::SECTOR_LEN as u64;
/// Bytes that `bench` copies at a time where nothing is said, and the most.
const BLOCK: u64 = 4096;
const MAX_BLOCK: u64 = 1 << 20;
/// What `bench` reads and writes back where nothing is said.
const BENCH_BYTES: u64 = 16 << 20;
const MAX_DEPTH: u64 = 256;

async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    match args.word("operation")? {
        "info" => info(args, out),
        "read" => read(args, out).await,
        "write" => write(args),
        "fill" => fill(args, out).await,
        "verify" => verify(args, out).await,
        "hash" => hash(args, out).await,
        "flush" => flush(args).await,
        "format" => format_store(args).await,
        "bench" => bench(args, out).await,
        other => Err(Error::usage(format_args!("no operation {other}"))),
    }
}

/// The device that the next word names.
fn device(args: &mut Args<'_>) -> Result<&'static Pmem, Error> {
    named(args.word("NAME")?)
}

fn named(name: &str) -> Result<&'static Pmem, Error> {
    pmem::find(name).ok_or_else(|| Error::failed(format_args!("no persistent memory {name}")))
}

/// An error with the name that the user knows.
fn failed(pmem: &Pmem, error: impl core::fmt::Display) -> Error {
    Error::failed(format_args!("{}: {error}", pmem.name))
}

fn info(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let name = args.next_word();
    args.end()?;
    let devices = match name {
        Some(name) => Vec::from([named(name)?]),
        None => pmem::all(),
    };
    for pmem in devices {
        let config = pmem.config();
        write!(
            out,
            "{}: size={} start={:#x}",
            pmem.name, config.size, config.start
        )?;
        for (name, count) in pmem.report().counters {
            write!(out, " {name}={count}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

async fn read(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let len = args.number_option("len")?;
    let pmem = device(&mut args)?;
    let offset = args.number("OFFSET")?;
    let len = args.or_next("LEN", len)?.unwrap_or(READ_BYTES);
    args.end()?;
    if len > MAX_READ_BYTES {
        return Err(Error::usage(format_args!(
            "LEN is at most {MAX_READ_BYTES}"
        )));
    }
    let mut bytes = vec![0; len as usize];
    get(pmem, offset, &mut bytes)?;
    dump::lines(out, offset, &bytes).await
}

fn get(pmem: &Pmem, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let loaded = pmem.with_region(|region| region.read(offset, bytes));
    loaded.map_err(|cause| failed(pmem, cause))
}

fn put(pmem: &Pmem, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    let stored = pmem.with_region(|region| region.write(offset, bytes));
    stored.map_err(|cause| failed(pmem, cause))
}

/// What the kernel keeps is not overwritten by a slip of the hand.
fn refuse_store(pmem: &Pmem) -> Result<(), Error> {
    match pmem.is_in_use() {
        true => Err(failed(pmem, "is the store; `pmem format` makes it anew")),
        false => Ok(()),
    }
}

fn write(mut args: Args<'_>) -> Result<(), Error> {
    let pmem = device(&mut args)?;
    let offset = args.number("OFFSET")?;
    let text = args.rest();
    if text.is_empty() {
        return Err(Error::usage("TEXT is missing"));
    }
    refuse_store(pmem)?;
    put(pmem, offset, text.as_bytes())
}

/// The bytes from `offset` on, `len` of them, if there are that many.
fn extent(pmem: &Pmem, offset: u64, len: u64) -> Result<Range<u64>, Error> {
    let size = pmem.config().size;
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(offset..end),
        _ => Err(failed(
            pmem,
            format_args!("{len} bytes at {offset} are past the end ({size} bytes)"),
        )),
    }
}

/// The bytes cut where a piece ends, counted from the start of the region.
fn pieces(extent: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut next = extent.start;
    core::iter::from_fn(move || {
        let start = next;
        next = extent.end.min((start / PIECE + 1) * PIECE);
        (start < next).then_some(start..next)
    })
}

/// What is to be filled or verified.
struct Seeded {
    pmem: &'static Pmem,
    extent: Range<u64>,
    seed: u64,
    progress: Progress,
}

/// The words `NAME OFFSET LEN SEED`.
fn seeded(mut args: Args<'_>) -> Result<Seeded, Error> {
    let progress = args.progress();
    let pmem = device(&mut args)?;
    let offset = args.number("OFFSET")?;
    let len = args.number("LEN")?;
    let seed = args.number("SEED")?;
    args.end()?;
    Ok(Seeded {
        pmem,
        extent: extent(pmem, offset, len)?,
        seed,
        progress: progress.of(len),
    })
}

/// The bytes of a piece in the test pattern, which is the disks', sector 0 being the start of the region.
fn in_pattern(piece: &Range<u64>, seed: u64) -> Vec<u8> {
    let sector = piece.start / SECTOR;
    let skip = (piece.start % SECTOR) as usize;
    let mut bytes = vec![0; skip + (piece.end - piece.start) as usize];
    pattern::fill(&mut bytes, sector, seed);
    bytes.drain(..skip);
    bytes
}

async fn fill(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let Seeded {
        pmem,
        extent,
        seed,
        progress,
    } = seeded(args)?;
    refuse_store(pmem)?;
    let len = extent.end - extent.start;
    for piece in pieces(extent) {
        put(pmem, piece.start, &in_pattern(&piece, seed))?;
        progress.add(piece.end - piece.start);
        yield_now().await;
    }
    writeln!(out, "filled bytes={len}")?;
    Ok(())
}

async fn verify(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let Seeded {
        pmem,
        extent,
        seed,
        progress,
    } = seeded(args)?;
    let len = extent.end - extent.start;
    for piece in pieces(extent) {
        let expected = in_pattern(&piece, seed);
        let compared = pmem.with_region(|region| region.first_difference(piece.start, &expected));
        if let Some(at) = compared.map_err(|cause| failed(pmem, cause))? {
            let offset = piece.start + at as u64;
            return Err(failed(
                pmem,
                format_args!("byte {offset} is not the pattern's"),
            ));
        }
        progress.add(piece.end - piece.start);
        yield_now().await;
    }
    writeln!(out, "verified bytes={len}")?;
    Ok(())
}

async fn hash(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let offset = args.number_option("offset")?;
    let progress = args.progress();
    let pmem = device(&mut args)?;
    let offset = args.or_next("OFFSET", offset)?;
    let len = match offset {
        Some(_) => args.number("LEN")?,
        None => pmem.config().size,
    };
    args.end()?;
    let progress = progress.of(len);
    let mut sha256 = Sha256::new();
    let mut bytes = vec![0; PIECE as usize];
    for piece in pieces(extent(pmem, offset.unwrap_or(0), len)?) {
        bytes.resize((piece.end - piece.start) as usize, 0);
        get(pmem, piece.start, &mut bytes)?;
        sha256.update(&bytes);
        progress.add(bytes.len() as u64);
        yield_now().await;
    }
    out.write_str("sha256=")?;
    dump::hexadecimal(out, &sha256.finalize())?;
    writeln!(out)?;
    Ok(())
}

async fn flush(mut args: Args<'_>) -> Result<(), Error> {
    let pmem = device(&mut args)?;
    args.end()?;
    pmem.flush().await.map_err(|error| failed(pmem, error))
}

/// Writes the test pattern to the end of the region, reads it, puts back what was there, and flushes. The store's region
/// is only flushed.
pub(super) async fn check(pmem: &Pmem, out: Output<'_>) -> Result<(), Error> {
    let size = pmem.config().size;
    let piece = size.saturating_sub(PIECE)..size;
    let mut difference = None;
    if !pmem.is_in_use() {
        let pattern = in_pattern(&piece, size);
        let mut original = vec![0; pattern.len()];
        get(pmem, piece.start, &mut original)?;
        put(pmem, piece.start, &pattern)?;
        let compared = pmem.with_region(|region| region.first_difference(piece.start, &pattern));
        put(pmem, piece.start, &original)?;
        difference = compared.map_err(|cause| failed(pmem, cause))?;
    }
    pmem.flush().await.map_err(|error| failed(pmem, error))?;
    if let Some(at) = difference {
        let offset = piece.start + at as u64;
        return Err(failed(pmem, format_args!("byte {offset} did not keep")));
    }
    let name = &pmem.name;
    match pmem.is_in_use() {
        true => writeln!(out, "{name}: flushed (it is the store)")?,
        false => {
            let len = piece.end - piece.start;
            writeln!(
                out,
                "{name}: {len} bytes written, verified, put back and flushed"
            )?;
        }
    }
    Ok(())
}

async fn format_store(mut args: Args<'_>) -> Result<(), Error> {
    let pmem = device(&mut args)?;
    let bytes = args.number_option("size")?;
    let force = match args.next_word() {
        None => false,
        Some("force") => true,
        Some(other) => return Err(Error::usage(format_args!("`{other}` is not force"))),
    };
    args.end()?;
    let formatted = store::format(pmem, bytes, force).await;
    formatted.map_err(|reason| failed(pmem, reason))
}

/// With `rw`, does only that. Without it, reads the beginning of the region, writes it back as it was, and has flushes done.
async fn bench(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let rw = rw(&mut args)?;
    let depth = either(&mut args, "iodepth", "depth")?;
    let bytes = args.number_option("bs")?;
    let flush_every = args.number_option("fsync")?;
    let count = args.number_option("count")?.unwrap_or(1000);
    let pmem = device(&mut args)?;
    args.end()?;
    match (rw, depth) {
        (None, depth) if bytes.is_none() && flush_every.is_none() => {
            bench_all(pmem, depth.unwrap_or(1), count, out).await
        }
        (Some(_), Some(_)) => Err(Error::usage("iodepth is the number of those who flush")),
        (Some((write, order)), None) => {
            let access = match (write, flush_every) {
                (true, flush_every) => Access::Write {
                    flush_every: flush_every.unwrap_or(0),
                },
                (false, None) => Access::Read,
                (false, Some(_)) => return Err(Error::usage("fsync goes with writes")),
            };
            let bytes = bytes.unwrap_or(BLOCK);
            let size = pmem.config().size;
            if !(1..=MAX_BLOCK.min(size)).contains(&bytes) {
                return Err(Error::usage(format!("bs is 1 to {}", MAX_BLOCK.min(size))));
            }
            let places = Places::new(order, size / bytes, bytes);
            let took = bench::copy(pmem, access, &places, bytes, count).await?;
            let operation = if write { "write" } else { "read" };
            let requests = took.requests;
            writeln!(
                out,
                "bench op={operation} order={order} size={bytes} copies={count} requests={requests} {took}"
            )?;
            Ok(())
        }
        (None, _) => Err(Error::usage("bs and fsync go with rw")),
    }
}

async fn bench_all(pmem: &Pmem, depth: u64, count: u64, out: Output<'_>) -> Result<(), Error> {
    if !(1..=MAX_DEPTH).contains(&depth) {
        return Err(Error::usage(format!("iodepth is 1 to {MAX_DEPTH}")));
    }
    let len = pmem.config().size.min(BENCH_BYTES);
    let mut bytes = vec![0; PIECE as usize];
    // Reads and writes alternate, so that what others write meanwhile is overwritten as little as can be.
    let (mut reading, mut writing) = (0, 0);
    for piece in pieces(0..len) {
        bytes.resize((piece.end - piece.start) as usize, 0);
        let start = time::now();
        get(pmem, piece.start, &mut bytes)?;
        reading += start.elapsed().as_micros();
        let start = time::now();
        put(pmem, piece.start, &bytes)?;
        writing += start.elapsed().as_micros();
    }
    writeln!(out, "bench op=read bytes={len} us={reading}")?;
    writeln!(out, "bench op=write bytes={len} us={writing}")?;

    let took = bench::flush(pmem, depth, count).await?;
    let requests = took.requests;
    writeln!(
        out,
        "bench op=flush depth={depth} flushes={count} requests={requests} {took}"
    )?;
    Ok(())
}
