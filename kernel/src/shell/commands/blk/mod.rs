//! The commands of the disks: blk, with an operation as its first word.

mod bench;
pub(super) mod pattern;
mod work;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::num::NonZeroU64;

use vringlet::Error as DeviceError;
use vringlet::blk::{CacheMode, SECTOR_LEN};

use self::bench::Access;
use self::work::{DEPTH, REQUEST_BYTES};
use super::bench::places::Order;
use super::bench::{either, rw};
use crate::devices::blk::{self, Disk};
use crate::shell::{Args, Command, Error, Output, dump};

pub(super) use work::Work;

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "blk",
    usage: &[
        "blk info [NAME]",
        "blk id NAME",
        "blk read NAME SECTOR [count=N]",
        "blk write NAME SECTOR TEXT",
        "blk fill NAME SECTOR COUNT SEED [depth=D] [max=BYTES]",
        "blk verify NAME SECTOR COUNT SEED [depth=D] [max=BYTES]",
        "blk hash NAME [sector=S count=N] [depth=D]",
        "blk flush NAME",
        "blk discard NAME SECTOR COUNT",
        "blk zero NAME SECTOR COUNT",
        "blk wce NAME [on|off]",
        "blk bench NAME [rw=read|write|randread|randwrite] [bs=BYTES] [iodepth=D] [count=N] [fsync=N] [latencies]",
    ],
    help: "reads, writes and measures disks; write, fill, discard, zero and bench with rw=write or randwrite overwrite \
           what is there; bench goes from the first sector to the last and again, or with `rand` anywhere, and flushes \
           after every N writes; with `latencies` it tells how long reads took: so many in a thousand at most so long",
    run: |args, out| Box::pin(run(args, out)),
}];

/// Of the latencies of a benchmark, those are told that so many in a thousand are below.
const PER_MILLE: [usize; 16] = [
    0, 10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990, 999, 1000,
];

async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    match args.word("operation")? {
        "info" => info(args, out),
        "id" => id(args, out).await,
        "read" => read(args, out).await,
        "write" => write(args).await,
        "fill" => fill(args, out).await,
        "verify" => verify(args, out).await,
        "hash" => hash(args, out).await,
        "flush" => flush(args).await,
        "discard" => discard(args, out).await,
        "zero" => zero(args, out).await,
        "wce" => wce(args, out),
        "bench" => bench(args, out).await,
        other => Err(Error::usage(format_args!("no operation {other}"))),
    }
}

/// The disk that the next word names.
fn disk(args: &mut Args<'_>) -> Result<&'static Disk, Error> {
    named(args.word("NAME")?)
}

fn named(name: &str) -> Result<&'static Disk, Error> {
    blk::find(name).ok_or_else(|| Error::failed(format_args!("no disk {name}")))
}

/// An error of the device, with the name that the user knows.
fn failed(disk: &Disk, error: impl Into<DeviceError>) -> Error {
    Error::failed(format_args!("{}: {}", disk.name, error.into()))
}

fn info(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let name = args.next_word();
    args.end()?;
    let disks = match name {
        Some(name) => Vec::from([named(name)?]),
        None => blk::all(),
    };
    for disk in disks {
        show(disk, out)?;
    }
    Ok(())
}

fn show(disk: &Disk, out: Output<'_>) -> Result<(), Error> {
    let (config, segments_max) = disk.with(|blk| (blk.config(), blk.segments_max()));
    write!(
        out,
        "{}: capacity_sectors={} block_size={} read_only={} wce={} flush={} segments_max={segments_max}",
        disk.name,
        config.capacity,
        config.block_size,
        yes_no(config.read_only),
        on_off(config.cache_mode),
        yes_no(config.flush),
    )?;
    if let Some(max) = config.size_max {
        write!(out, " size_max={max}")?;
    }
    if let Some(geometry) = config.geometry {
        let (cylinders, heads, sectors) = (geometry.cylinders, geometry.heads, geometry.sectors);
        write!(out, " geometry={cylinders}/{heads}/{sectors}")?;
    }
    if let (Some(topology), Some(physical)) = (config.topology, config.physical_block_size()) {
        write!(
            out,
            " physical_block_size={physical} alignment_offset={} min_io_blocks={} opt_io_blocks={}",
            topology.alignment_offset, topology.min_io_size, topology.opt_io_size
        )?;
    }
    if let Some(limits) = config.discard {
        write!(
            out,
            " discard_max_sectors={} discard_max_ranges={} discard_alignment={}",
            limits.max_sectors, limits.max_ranges, limits.alignment
        )?;
    }
    if let Some(limits) = config.write_zeroes {
        write!(
            out,
            " zero_max_sectors={} zero_max_ranges={} zero_may_unmap={}",
            limits.max_sectors,
            limits.max_ranges,
            yes_no(limits.may_unmap)
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn on_off(mode: CacheMode) -> &'static str {
    match mode {
        CacheMode::WriteBack => "on",
        CacheMode::WriteThrough => "off",
    }
}

async fn id(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let disk = disk(&mut args)?;
    args.end()?;
    let id = disk.get_id().await.map_err(|error| failed(disk, error))?;
    writeln!(out, "id={}", id.escape_ascii())?;
    Ok(())
}

async fn read(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let count = args.number_option("count")?;
    let disk = disk(&mut args)?;
    let sector = args.number("SECTOR")?;
    let count = args.or_next("COUNT", count)?.unwrap_or(1);
    args.end()?;
    let Some(end) = sector
        .checked_add(count)
        .filter(|end| *end <= capacity(disk))
    else {
        return Err(Error::failed(format_args!(
            "{}: {count} sectors at {sector} are past the end ({} sectors)",
            disk.name,
            capacity(disk)
        )));
    };
    // One at a time the blocks that hold the sectors.
    let block = block_sectors(disk);
    let mut at = sector;
    while at < end {
        let start = at / block * block;
        let work = Work::new(disk, start, block, DEPTH, min_bytes(disk))?;
        for buffer in work.read_all().await? {
            for (number, bytes) in (start..).zip(buffer.chunks(SECTOR_LEN)) {
                if (at..end).contains(&number) {
                    dump::lines(out, number * SECTOR_LEN as u64, bytes).await?;
                }
            }
        }
        at = start + block;
    }
    Ok(())
}

fn capacity(disk: &Disk) -> u64 {
    disk.control().config().capacity
}

/// Bytes of the requests that are used where nothing is said: whole blocks.
fn min_bytes(disk: &Disk) -> u64 {
    REQUEST_BYTES.max(block_sectors(disk) * SECTOR_LEN as u64)
}

fn block_sectors(disk: &Disk) -> u64 {
    u64::from(disk.control().config().block_size) / SECTOR_LEN as u64
}

async fn write(mut args: Args<'_>) -> Result<(), Error> {
    let disk = disk(&mut args)?;
    let sector = args.number("SECTOR")?;
    let text = args.rest();
    if text.is_empty() {
        return Err(Error::usage("TEXT is missing"));
    }
    if text.len() > SECTOR_LEN {
        return Err(Error::usage(format_args!(
            "TEXT has more than {SECTOR_LEN} bytes"
        )));
    }
    // What else is in the sector's block stays.
    let block = block_sectors(disk);
    let start = sector / block * block;
    let work = Work::new(disk, start, block, DEPTH, min_bytes(disk))?;
    let mut buffers = work.read_all().await?;
    let place = (sector - start) as usize * SECTOR_LEN;
    if let Some(place) = buffers
        .first_mut()
        .and_then(|bytes| bytes.get_mut(place..place + SECTOR_LEN))
    {
        let padded = text.bytes().chain(core::iter::repeat(0));
        place
            .iter_mut()
            .zip(padded)
            .for_each(|(to, from)| *to = from);
    }
    work.write_all(buffers).await
}

/// The words `NAME SECTOR COUNT SEED [depth=D] [max=BYTES]`.
fn seeded(mut args: Args<'_>) -> Result<(Work<'static>, u64, u64), Error> {
    let depth = args.number_option("depth")?.unwrap_or(DEPTH);
    let max = args.number_option("max")?;
    let progress = args.progress();
    let disk = disk(&mut args)?;
    let sector = args.number("SECTOR")?;
    let count = args.number("COUNT")?;
    let seed = args.number("SEED")?;
    args.end()?;
    let max = max.unwrap_or(min_bytes(disk));
    let work = Work::new(disk, sector, count, depth, max)?;
    Ok((work.shown(progress), count, seed))
}

async fn fill(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (work, count, seed) = seeded(args)?;
    let requests = work.fill(seed).await?;
    writeln!(out, "filled sectors={count} requests={requests}")?;
    Ok(())
}

async fn verify(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (work, count, seed) = seeded(args)?;
    let requests = work.verify(seed).await?;
    writeln!(out, "verified sectors={count} requests={requests}")?;
    Ok(())
}

async fn hash(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let depth = args.number_option("depth")?.unwrap_or(DEPTH);
    let sector = args.number_option("sector")?;
    let progress = args.progress();
    let disk = disk(&mut args)?;
    let sector = args.or_next("SECTOR", sector)?;
    let count = match sector {
        Some(_) => args.number("COUNT")?,
        None => capacity(disk),
    };
    args.end()?;
    let work = Work::new(disk, sector.unwrap_or(0), count, depth, min_bytes(disk))?;
    let hash = work.shown(progress).hash().await?;
    out.write_str("sha256=")?;
    dump::hexadecimal(out, &hash)?;
    writeln!(out)?;
    Ok(())
}

async fn flush(mut args: Args<'_>) -> Result<(), Error> {
    let disk = disk(&mut args)?;
    args.end()?;
    disk.flush().await.map_err(|error| failed(disk, error))
}

/// The words `NAME SECTOR COUNT`.
fn extent(mut args: Args<'_>) -> Result<(Work<'static>, u64), Error> {
    let progress = args.progress();
    let disk = disk(&mut args)?;
    let sector = args.number("SECTOR")?;
    let count = args.number("COUNT")?;
    args.end()?;
    let work = Work::new(disk, sector, count, DEPTH, min_bytes(disk))?;
    Ok((work.shown(progress), count))
}

async fn discard(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (work, count) = extent(args)?;
    let requests = work.discard().await?;
    writeln!(out, "discarded sectors={count} requests={requests}")?;
    Ok(())
}

async fn zero(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let (work, count) = extent(args)?;
    let requests = work.zero().await?;
    writeln!(out, "zeroed sectors={count} requests={requests}")?;
    Ok(())
}

fn wce(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let disk = disk(&mut args)?;
    let mode = match args.next_word() {
        None => None,
        Some("on") => Some(CacheMode::WriteBack),
        Some("off") => Some(CacheMode::WriteThrough),
        Some(other) => {
            return Err(Error::usage(format_args!(
                "`{other}` is neither on nor off"
            )));
        }
    };
    args.end()?;
    let set = |mode| {
        disk.control()
            .set_cache_mode(mode)
            .map_err(|error| failed(disk, error))
    };
    let now = match mode {
        Some(mode) => set(mode)?,
        None => disk.control().config().cache_mode,
    };
    writeln!(out, "wce={}", on_off(now))?;
    match mode {
        Some(mode) if mode != now => Err(Error::failed(format_args!(
            "{}: the device did not change its cache mode",
            disk.name
        ))),
        _ => Ok(()),
    }
}

async fn bench(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let latencies = args.switch("latencies");
    // What was said before there was `rw`.
    let [read, write, random] = ["read", "write", "random"].map(|word| args.switch(word));
    let order = |random| match random {
        true => Order::Random,
        false => Order::Sequential,
    };
    let older = (read || write || random).then(|| (write, order(random)));
    let rw = rw(&mut args)?;
    if (read && write) || (rw.is_some() && older.is_some()) {
        return Err(Error::usage("more than one operation"));
    }
    let (write, order) = rw.or(older).unwrap_or((false, Order::Sequential));
    let depth = either(&mut args, "iodepth", "depth")?.unwrap_or(DEPTH);
    let size = either(&mut args, "bs", "size")?.unwrap_or(4096);
    let flush_every = either(&mut args, "fsync", "flush")?;
    let count = args.number_option("count")?.unwrap_or(10_000);
    let disk = disk(&mut args)?;
    args.end()?;
    if write && latencies {
        return Err(Error::usage("latencies goes with reads"));
    }
    let access = match (write, flush_every.map(NonZeroU64::new)) {
        (true, None) => Access::Write { flush_every: None },
        (true, Some(Some(number))) => Access::Write {
            flush_every: Some(number),
        },
        (false, None) => Access::Read { latencies },
        (true, Some(None)) => return Err(Error::usage("fsync is 1 or more")),
        (false, Some(_)) => return Err(Error::usage("fsync goes with writes")),
    };
    let operation = if write { "write" } else { "read" };
    let block = block_sectors(disk);
    let sectors = capacity(disk) / block * block;
    let work = Work::new(disk, 0, sectors, depth, size)?;
    let found = bench::run(&work, access, order, count).await?;
    let (took, flushes) = (&found.took, found.flushes);
    writeln!(
        out,
        "bench op={operation} order={order} depth={depth} size={} requests={} flushes={flushes} {took}",
        work.request_bytes(),
        took.requests,
    )?;
    if let Some(last) = found.latencies.len().checked_sub(1) {
        write!(out, "latencies ns")?;
        for per_mille in PER_MILLE {
            let nanoseconds = found.latencies.get(last * per_mille / 1000);
            write!(out, " {per_mille}={}", nanoseconds.unwrap_or(&0))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
