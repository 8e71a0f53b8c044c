//! The same with the drivers of the crate `virtio-drivers`, of which persistent memory has none.

#![allow(dead_code, reason = "the features say which of them are used")]

use core::fmt;

use virtio_drivers::Error;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::gpu::VirtIOGpu;
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::sound::{PcmFeatures, PcmFormat, PcmRate, VirtIOSound};
use virtio_drivers::transport::pci::bus::{DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError};

use crate::platform::{Identity, Ports, is_in_time};

/// Both kinds of error that the crate has.
pub(crate) enum Failure {
    Transport(VirtioPciError),
    Driver(Error),
}

impl From<VirtioPciError> for Failure {
    fn from(error: VirtioPciError) -> Self {
        Self::Transport(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Driver(error) => error.fmt(f),
        }
    }
}

fn transport(place: DeviceFunction) -> Result<PciTransport, Failure> {
    let mut root = PciRoot::new(Ports);
    Ok(PciTransport::new::<Identity, _>(&mut root, place)?)
}

pub(crate) fn blk(place: DeviceFunction) -> Result<(), Failure> {
    let mut disk = VirtIOBlk::<Identity, _>::new(transport(place)?)?;
    log::info!("{} sectors", disk.capacity());
    let mut block = [0; 512];
    disk.read_blocks(1, &mut block)?;
    disk.write_blocks(2, &block)?;
    Ok(disk.flush()?)
}

pub(crate) fn net(place: DeviceFunction) -> Result<(), Failure> {
    let mut card = VirtIONet::<Identity, _, 256>::new(transport(place)?, 2048)?;
    log::info!("{:02x?}", card.mac_address());
    while is_in_time() {
        let frame = match card.receive() {
            Err(Error::NotReady) => continue,
            received => received?,
        };
        let first = frame.packet().first().copied().unwrap_or(0);
        card.recycle_rx_buffer(frame)?;
        let mut answer = card.new_tx_buffer(64);
        answer.packet_mut().fill(first);
        card.send(answer)?;
    }
    Ok(())
}

pub(crate) fn gpu(place: DeviceFunction) -> Result<(), Failure> {
    let mut gpu = VirtIOGpu::<Identity, _>::new(transport(place)?)?;
    let _ = gpu.edid_preferred_resolution();
    gpu.resolution()?;
    gpu.setup_framebuffer()?.fill(0xff);
    Ok(gpu.flush()?)
}

pub(crate) fn sound(place: DeviceFunction) -> Result<(), Failure> {
    let mut card = VirtIOSound::<Identity, _>::new(transport(place)?)?;
    let stream = card.output_streams()?.first().copied().unwrap_or(0);
    let features = PcmFeatures::empty();
    let (format, rate) = (PcmFormat::S16, PcmRate::Rate48000);
    card.pcm_set_params(stream, 7680, 1920, features, 2, format, rate)?;
    card.pcm_prepare(stream)?;
    card.pcm_start(stream)?;
    card.pcm_xfer(stream, &[0; 1920])?;
    card.pcm_stop(stream)?;
    Ok(card.pcm_release(stream)?)
}

pub(crate) fn rng(place: DeviceFunction) -> Result<(), Failure> {
    let mut bytes = [0; 32];
    let mut device = VirtIORng::<Identity, _>::new(transport(place)?)?;
    device.request_entropy(&mut bytes)?;
    log::info!("{:02x?}", bytes);
    Ok(())
}
