//! The tour: selftest. Everything there is, used once, with nothing lost.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use smoltcp::wire::{IpAddress, Ipv4Address};
use vringlet::Buffer;

use super::blk::Work;
use super::net::{fetch_url, ping_host};
use super::{pmem, rng, screen, sound};
use crate::devices::{self, blk::Disk};
use crate::net;
use crate::net::fetch::Url;
use crate::net::target::Target;
use crate::platform::time;
use crate::runtime::task;
use crate::shell::progress::Progress;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "selftest",
    usage: &["selftest"],
    help: "uses every device once; what is on the disks and in persistent memory stays as it is",
    run: |args, out| Box::pin(selftest(args, out)),
}];

/// Bytes at the end of a disk that are written, and then written back.
const SCRATCH_BYTES: u64 = 256 << 10;
const REQUEST_BYTES: u64 = 64 << 10;
const DEPTH: u64 = 8;
/// How long a DHCP server may take.
const LEASE_PATIENCE: Duration = Duration::from_secs(10);

async fn selftest(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    devices(out)?;
    for disk in devices::blk::all() {
        check_disk(disk, out).await?;
    }
    for adapter in devices::gpu::all() {
        screen::check(adapter, out).await?;
    }
    for card in devices::sound::all() {
        sound::check(card, out).await?;
    }
    for memory in devices::pmem::all() {
        pmem::check(memory, out).await?;
    }
    for source in devices::rng::all() {
        rng::check(source, out).await?;
    }
    check_network(out).await
}

/// Every interface whose link is up has an address and its router answers; our own page is served.
async fn check_network(out: Output<'_>) -> Result<(), Error> {
    for stack in net::stacks() {
        let name = stack.name();
        if !stack.summary().link {
            writeln!(out, "{name}: link down")?;
            continue;
        }
        let Some(lease) = net::leased(stack, time::now() + LEASE_PATIENCE).await else {
            return Err(Error::failed(format_args!("{name}: no address")));
        };
        writeln!(out, "{name}: address {}", lease.address)?;
        if let Some(gateway) = lease.gateway {
            let target = Target {
                address: gateway.into(),
                interface: Some(name.into()),
            };
            if ping_host(&target, 1, out).await? == 0 {
                return Err(Error::failed(format_args!(
                    "{name}: the gateway {gateway} does not answer"
                )));
            }
        }
        own_page(lease.address.address().into(), out).await?;
    }
    own_page(IpAddress::from(Ipv4Address::LOCALHOST), out).await
}

async fn own_page(address: IpAddress, out: Output<'_>) -> Result<(), Error> {
    let url = Url::at(address, "/status.json");
    let (response, hash) = fetch_url(&url, Progress::hidden()).await?;
    if response.status != 200 || response.bytes == 0 {
        return Err(Error::failed(format_args!(
            "{url}: status {}, {} bytes",
            response.status, response.bytes
        )));
    }
    writeln!(out, "{url}: {} bytes, sha256 {hash}", response.bytes)?;
    Ok(())
}

/// Every device has a driver that works.
fn devices(out: Output<'_>) -> Result<(), Error> {
    for device in devices::all() {
        let (name, place, mode) = (&device.name, device.place, device.mode());
        match &device.driver {
            Ok(driver) => writeln!(out, "{name}: {place} ({mode}): {}", driver.summary())?,
            Err(reason) => writeln!(out, "{name}: {place}: {reason}")?,
        }
    }
    Ok(())
}

/// Reads the end of the disk, writes the test pattern there, reads it back, and writes back what was there.
async fn check_disk(disk: &'static Disk, out: Output<'_>) -> Result<(), Error> {
    let config = disk.control().config();
    let sector_len = vringlet::blk::SECTOR_LEN as u64;
    let block = u64::from(config.block_size) / sector_len;
    let end = config.capacity / block * block;
    let count = end.min((SCRATCH_BYTES / sector_len).next_multiple_of(block));
    let max = REQUEST_BYTES.max(config.block_size.into());
    let work = Work::new(disk, end - count, count, DEPTH, max)?;

    let before = work.hash().await?;
    if config.read_only {
        writeln!(out, "{}: {count} sectors read (read-only)", disk.name)?;
        return Ok(());
    }
    let original = work.read_all().await?;
    // Whatever comes of it, and though the command is broken off: the disk gets back what it had.
    let (work, checked) = task::to_the_end(async move {
        let checked = write_and_put_back(&work, original, config.flush).await;
        (work, checked)
    })
    .await;
    let requests = checked?;
    if work.hash().await? != before {
        let name = &disk.name;
        return Err(Error::failed(format_args!(
            "{name}: the last {count} sectors are not what they were"
        )));
    }
    writeln!(
        out,
        "{}: {count} sectors written, verified in {requests} requests, and put back",
        disk.name
    )?;
    Ok(())
}

/// Gives the number of requests that verified what was written.
async fn write_and_put_back(
    work: &Work<'_>,
    original: Vec<Buffer>,
    flush: bool,
) -> Result<u64, Error> {
    let seed = u64::from_le_bytes(*b"vringlet");
    let checked = async {
        work.fill(seed).await?;
        work.verify(seed).await
    };
    let checked = checked.await;
    work.write_all(original).await?;
    if flush {
        work.flush().await?;
    }
    checked
}
