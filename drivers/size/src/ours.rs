//! What a kernel does with the drivers of `vringlet`.

#![allow(dead_code, reason = "the features say which of them are used")]

use alloc::vec;

use virtio_drivers::transport::pci::bus::DeviceFunction;
use vringlet::blk::{self, Blk};
use vringlet::blocking::Blocking;
use vringlet::gpu::{self, Buffering, Gpu, Screen};
use vringlet::net::{self, Net};
use vringlet::pmem::{self, Pmem};
use vringlet::rng::{self, Rng};
use vringlet::sound::{self, Format, Layout, Params, Rate, Request, Sound};
use vringlet::{Buffer, Cause, Driver, Error, PciTransport, Result};

use crate::platform::{Identity, Ports, is_in_time};

fn transport(place: DeviceFunction) -> Result<PciTransport<Identity>> {
    PciTransport::new(&mut Ports, place, Identity)
}

pub(crate) fn blk(place: DeviceFunction) -> Result<()> {
    let disk = Blk::new(transport(place)?, blk::Options::default())?;
    log::info!("{} sectors", disk.config().capacity);
    let mut disk = Blocking::new(disk);
    let block = disk.read(1, Buffer::from(vec![0; 512]), is_in_time)?;
    disk.write(2, block, is_in_time)?;
    disk.flush(is_in_time)
}

pub(crate) fn net(place: DeviceFunction) -> Result<()> {
    let mut card = Net::new(transport(place)?, net::Options::default())?;
    log::info!("{:02x?}", card.mac().0);
    while is_in_time() {
        let Some(frame) = card.receive()? else {
            continue;
        };
        let first = frame.first().copied().unwrap_or(0);
        drop(frame);
        let mut answer = card.transmit(64)?;
        answer.fill(first);
        answer.send()?;
        card.flush();
    }
    Ok(())
}

pub(crate) fn gpu(place: DeviceFunction) -> Result<()> {
    let mut gpu = Blocking::new(Gpu::new(transport(place)?, gpu::Options::default())?);
    gpu.refresh(is_in_time)?;
    let driver = gpu.driver();
    let head = driver.layout().and_then(|layout| layout.heads().first());
    let all = head.copied().unwrap_or(gpu::FALLBACK).rect;
    let size = all.size();
    let screen = Screen::new(&driver.dma(), 0, size, Buffering::Single);
    let mut screen = screen.map_err(|cause| driver.error(cause))?;
    screen.canvas().fill(all, 0x00ff_ffff);
    gpu.present(&mut screen, is_in_time)?;
    gpu.close(screen, is_in_time)
}

pub(crate) fn sound(place: DeviceFunction) -> Result<()> {
    let mut card = Blocking::new(Sound::new(transport(place)?, sound::Options::default())?);
    card.query(is_in_time)?;
    let layout = Layout {
        format: Format::S16,
        rate: Rate::Hz48000,
        channels: 2,
    };
    let error = |cause: Cause| -> Error { card.driver().error(cause) };
    let params = Params::new(layout, 480, 4).map_err(error)?;
    card.prepare(0, params, is_in_time)?;
    card.start(0, is_in_time)?;
    let period = Buffer::from(vec![0; 1920]);
    card.perform(Request::play(0, period, 1920), is_in_time)?;
    card.stop(0, is_in_time)?;
    card.release(0, is_in_time)
}

pub(crate) fn pmem(place: DeviceFunction) -> Result<()> {
    let memory = Pmem::new(transport(place)?, pmem::Options::default())?;
    log::info!("{:#x}", memory.config().start);
    Blocking::new(memory).flush(is_in_time)
}

pub(crate) fn rng(place: DeviceFunction) -> Result<()> {
    let mut bytes = [0; 32];
    let device = Rng::new(transport(place)?, rng::Options::default())?;
    Blocking::new(device).fill(&mut bytes, is_in_time)?;
    log::info!("{:02x?}", bytes);
    Ok(())
}
