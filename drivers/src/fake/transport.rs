//! [`FakeTransport`]: a device without a bus between it and the driver.

use super::device::{DeviceModel, FakeDevice};
use super::fault::Fault;
use super::memory::FakeDma;
use crate::device::DeviceName;
use crate::error::{Cause, Error, Result};
use crate::transport::{
    Instance, InterruptCauses, Notifier, QueueMemory, Quiesced, Status, Transport, tell_context,
};

/// Reaches a [`FakeDevice`] directly.
#[derive(Debug)]
pub struct FakeTransport<M> {
    device: FakeDevice<M>,
    name: DeviceName,
    instance: Instance,
    dma: FakeDma,
}

/// The bell of one queue of a [`FakeDevice`].
#[derive(Debug)]
pub struct FakeNotifier<M> {
    device: FakeDevice<M>,
    index: u16,
}

impl<M: DeviceModel> FakeTransport<M> {
    pub(super) fn new(device: FakeDevice<M>) -> Self {
        let name = device.name();
        Self {
            dma: FakeDma::new(device.memory()),
            device,
            name,
            instance: Instance::new(),
        }
    }

    /// The device at the other end.
    pub fn device(&self) -> &FakeDevice<M> {
        &self.device
    }

    fn error(&self, cause: Cause) -> Error {
        Error::new(self.name, cause)
    }

    fn is_gone(&self) -> bool {
        self.device.with_core(|core| core.common.has(Fault::Gone))
    }
}

#[expect(unsafe_code, reason = "keeps the promises of `Transport`")]
// SAFETY: the instance is its own; the device is done when its status reads 0; a device learns of its own queues only.
unsafe impl<M: DeviceModel> Transport for FakeTransport<M> {
    type Notifier = FakeNotifier<M>;
    type Dma = FakeDma;

    fn name(&self) -> DeviceName {
        self.name
    }

    fn instance(&self) -> &Instance {
        &self.instance
    }

    fn dma(&self) -> &FakeDma {
        &self.dma
    }

    fn reset(&mut self) -> Result<Quiesced> {
        self.device.with_core(|core| core.set_status(0));
        match self.status().bits() {
            0 => Ok(self.instance.quiesced()),
            status => Err(self.error(Cause::ResetTimeout { status })),
        }
    }

    fn status(&self) -> Status {
        let status = self.device.with_core(|core| core.status());
        Status::from_bits_retain(if self.is_gone() { 0xff } else { status })
    }

    fn set_status(&mut self, status: Status) {
        self.device.with_core(|core| core.set_status(status.bits()));
    }

    fn device_features(&mut self) -> u64 {
        self.device.with_core(|core| core.features())
    }

    fn set_driver_features(&mut self, features: u64) -> Result<()> {
        tell_context(&mut self.dma, self.name, features)?;
        self.device
            .with_core(|core| core.set_driver_features(features));
        Ok(())
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.device.with_core(|core| core.queue_max_size(index))
    }

    fn enable_queue(&mut self, index: u16, queue: &QueueMemory<'_>) -> Result<FakeNotifier<M>> {
        if self.queue_max_size(index) == 0 {
            return Err(Error::on_queue(self.name, index, Cause::NoSuchQueue));
        }
        if self.device.with_core(|core| core.queue_enabled(index)) {
            return Err(Error::on_queue(self.name, index, Cause::QueueInUse));
        }
        self.device
            .with_core(|core| core.enable_queue(index, queue.addresses()));
        Ok(FakeNotifier {
            device: self.device.clone(),
            index,
        })
    }

    fn config_generation(&self) -> u32 {
        self.device.with_core(|core| core.config_generation())
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let config = self.device.with_core(|core| core.config());
        let len = bytes.len();
        let end = offset.checked_add(len);
        match end.and_then(|end| config.get(offset..end)) {
            Some(_) if self.is_gone() => bytes.fill(0xff),
            Some(from) => bytes.copy_from_slice(from),
            None => return Err(self.error(Cause::ConfigOutOfRange { offset, len })),
        }
        Ok(())
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let room = self.device.with_core(|core| core.config()).len();
        let len = bytes.len();
        if offset.checked_add(len).is_none_or(|end| end > room) {
            return Err(self.error(Cause::ConfigOutOfRange { offset, len }));
        }
        self.device
            .with_core(|core| core.write_config(offset, bytes));
        Ok(())
    }

    fn take_interrupt_causes(&mut self) -> InterruptCauses {
        self.device.with_core(|core| core.take_causes())
    }
}

impl<M: DeviceModel> Notifier for FakeNotifier<M> {
    fn notify(&self) {
        self.device.with_core(|core| core.notify(self.index));
    }
}
