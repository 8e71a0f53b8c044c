//! [`FromStock`] and [`IntoStock`]: its transports as ours, and ours as its.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bitflags::Flags;
use core::fmt::Debug;
use core::marker::PhantomData;
use core::ops::BitAnd;
use core::ptr::NonNull;
use spin::Mutex;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus};
use virtio_drivers::{
    BufferDirection, Hal, PAGE_SIZE, PhysAddr, transport::Transport as StockTransport,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::device::{DeviceId, DeviceName, Location};
use crate::dma::DmaContext;
use crate::error::{Cause, Error, Result};
use crate::features::RingFeatures;
use crate::transport::{
    Instance, InterruptCauses, Notifier, QueueAddresses, QueueMemory, Quiesced, Status, Transport,
    tell_context, wait_for_reset,
};

/// A `virtio-drivers` transport as one of ours.
///
/// That trait knows no interrupt vectors, number of queues or shared memory, so a device on it is polled, or served by
/// one interrupt that the caller routes.
#[derive(Debug)]
pub struct FromStock<T, D> {
    name: DeviceName,
    inner: Arc<Mutex<T>>,
    dma: D,
    instance: Instance,
}

impl<T: StockTransport, D: DmaContext> FromStock<T, D> {
    /// Wraps `inner`, which sits at `location` and whose device reaches memory by `dma`.
    ///
    /// # Safety
    ///
    /// Anybody may implement that trait in safe code, so the caller must vouch for `inner`: it reaches a real device, says of
    /// it what it says, in particular its status, and nobody else drives that device.
    #[expect(unsafe_code, reason = "the trait underneath promises nothing")]
    pub unsafe fn new(inner: T, location: Location, dma: D) -> Self {
        let id = DeviceId(inner.device_type() as u32);
        Self {
            name: DeviceName { id, location },
            inner: Arc::new(Mutex::new(inner)),
            dma,
            instance: Instance::new(),
        }
    }

    fn error(&self, cause: Cause) -> Error {
        Error::new(self.name, cause)
    }
}

#[expect(unsafe_code, reason = "keeps the promises of `Transport`")]
// SAFETY: the instance is its own; the device is done when its status reads 0, as far as `inner` tells the truth, which the
// caller of `new` vouched for; so it did for `inner` knowing no other queues.
unsafe impl<T: StockTransport + Send + 'static, D: DmaContext> Transport for FromStock<T, D> {
    type Notifier = StockNotifier<T>;
    type Dma = D;

    fn name(&self) -> DeviceName {
        self.name
    }

    fn instance(&self) -> &Instance {
        &self.instance
    }

    fn dma(&self) -> &D {
        &self.dma
    }

    fn reset(&mut self) -> Result<Quiesced> {
        // A driver begins with this, and would miss features of which a legacy device can't know.
        if self.inner.lock().requires_legacy_layout() {
            return Err(self.error(Cause::LegacyOnly));
        }
        self.inner.lock().set_status(DeviceStatus::empty());
        let finished = wait_for_reset(|| self.status().bits().into());
        finished.map_err(|cause| self.error(cause))?;
        Ok(self.instance.quiesced())
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(self.inner.lock().get_status().bits() as u8)
    }

    fn set_status(&mut self, status: Status) {
        let status = DeviceStatus::from_bits_retain(status.bits().into());
        self.inner.lock().set_status(status);
    }

    fn device_features(&mut self) -> u64 {
        self.inner.lock().read_device_features()
    }

    fn set_driver_features(&mut self, features: u64) -> Result<()> {
        tell_context(&mut self.dma, self.name, features)?;
        let mut inner = self.inner.lock();
        inner.write_driver_features(features);
        inner.set_guest_page_size(PAGE_SIZE as u32);
        Ok(())
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        let size = self.inner.lock().max_queue_size(index);
        u16::try_from(size).unwrap_or(u16::MAX)
    }

    fn enable_queue(&mut self, index: u16, queue: &QueueMemory<'_>) -> Result<StockNotifier<T>> {
        let queue = queue.addresses();
        let mut inner = self.inner.lock();
        let fail = |cause| Err(Error::on_queue(self.name, index, cause));
        // The legacy layout puts the three parts at places that depend on each other; ours are not laid out so.
        if inner.requires_legacy_layout() {
            return fail(Cause::LegacyOnly);
        }
        if inner.queue_used(index) {
            return fail(Cause::QueueInUse);
        }
        inner.queue_set(
            index,
            queue.size.into(),
            queue.descriptors,
            queue.driver,
            queue.device,
        );
        Ok(StockNotifier {
            inner: self.inner.clone(),
            index,
        })
    }

    fn config_generation(&self) -> u32 {
        self.inner.lock().read_config_generation()
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let inner = self.inner.lock();
        let read = read_stock_config(&*inner, offset, bytes);
        let len = bytes.len();
        read.map_err(|_| self.error(Cause::ConfigOutOfRange { offset, len }))
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut inner = self.inner.lock();
        let written = match *bytes {
            [a, b] if offset.is_multiple_of(2) => {
                inner.write_config_space(offset, u16::from_ne_bytes([a, b]))
            }
            [a, b, c, d] if offset.is_multiple_of(4) => {
                inner.write_config_space(offset, u32::from_ne_bytes([a, b, c, d]))
            }
            _ => bytes
                .iter()
                .enumerate()
                .try_for_each(|(index, byte)| inner.write_config_space(offset + index, *byte)),
        };
        let len = bytes.len();
        written.map_err(|_| self.error(Cause::ConfigOutOfRange { offset, len }))
    }

    fn take_interrupt_causes(&mut self) -> InterruptCauses {
        InterruptCauses::from_bits_truncate(self.inner.lock().ack_interrupt().bits() as u8)
    }
}

/// Reads with accesses of the widths that [`Transport::read_config`] promises.
fn read_stock_config<T: StockTransport>(
    inner: &T,
    offset: usize,
    bytes: &mut [u8],
) -> virtio_drivers::Result<()> {
    match bytes.len() {
        // That trait asserts alignment.
        2 if offset.is_multiple_of(2) => {
            let half: u16 = inner.read_config_space(offset)?;
            bytes.copy_from_slice(&half.to_ne_bytes());
        }
        4 | 8 if offset.is_multiple_of(4) => {
            for (index, half) in bytes.chunks_exact_mut(4).enumerate() {
                let word: u32 = inner.read_config_space(offset + index * 4)?;
                half.copy_from_slice(&word.to_ne_bytes());
            }
        }
        _ => {
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = inner.read_config_space(offset + index)?;
            }
        }
    }
    Ok(())
}

/// Rings by way of the shared transport.
#[derive(Debug)]
pub struct StockNotifier<T> {
    inner: Arc<Mutex<T>>,
    index: u16,
}

impl<T: StockTransport + Send> Notifier for StockNotifier<T> {
    fn notify(&self) {
        self.inner.lock().notify(self.index);
    }
}

/// One of our transports for `virtio-drivers`' own drivers.
///
/// Made by [`IntoStock::new`], which refuses a device type that `virtio-drivers` has no name for: its trait can't say
/// "none of these".
pub struct IntoStock<T: Transport> {
    inner: T,
    device_type: DeviceType,
    /// The bell of each queue that the device was told of, and where its three areas are. One that it refused has none.
    queues: BTreeMap<u16, (Option<T::Notifier>, [u64; 3])>,
    /// FEATURES_OK did not stick, or a queue could not be set up: DRIVER_OK will not be set.
    failed: Option<Error>,
}

impl<T: Transport> IntoStock<T> {
    /// Wraps `inner`.
    ///
    /// # Safety
    ///
    /// That trait lets safe code point the device at any memory, so the caller must see to it that only a driver of
    /// `virtio-drivers` uses it, one whose `Hal` is [`Leaky`]: those drivers free their queues even if the device could not
    /// be stopped.
    ///
    /// # Errors
    ///
    /// [`Cause::NoStockType`] if `virtio-drivers` has no name for the type of the device.
    #[expect(unsafe_code, reason = "the trait promises nothing")]
    pub unsafe fn new(inner: T) -> Result<Self> {
        let name = inner.name();
        let device_type =
            DeviceType::try_from(name.id.0).map_err(|_| Error::new(name, Cause::NoStockType))?;
        Ok(Self {
            inner,
            device_type,
            queues: BTreeMap::new(),
            failed: None,
        })
    }

    /// Why the device does not work, since that trait's methods can't say: features refused, or a queue not set up.
    pub fn failure(&self) -> Option<Error> {
        self.failed
    }

    fn fail(&mut self, error: Error) {
        log::error!("{error}");
        crate::start::give_up(&mut self.inner);
        self.failed = self.failed.or(Some(error));
    }

    fn out_of_range(&self) -> virtio_drivers::Error {
        virtio_drivers::Error::ConfigSpaceTooSmall
    }
}

impl<T: Transport> StockTransport for IntoStock<T> {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        if let Err(error) = self.inner.set_driver_features(driver_features) {
            self.fail(error);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.queue_max_size(queue).into()
    }

    fn notify(&mut self, queue: u16) {
        if let Some((Some(bell), _)) = self.queues.get(&queue) {
            bell.notify();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.inner.status().bits().into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            let queues = core::mem::take(&mut self.queues);
            if let Err(error) = self.inner.reset() {
                let mut kept = KEPT.lock();
                kept.extend(queues.into_values().flat_map(|(_, areas)| areas));
                drop(kept);
                self.fail(error);
            }
        } else {
            let status = Status::from_bits_retain(status.bits() as u8);
            self.inner.set_status(status);
        }
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // A register of the legacy interface.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let Ok(size16) = u16::try_from(size) else {
            let max = self.max_queue_size(queue);
            let cause = Cause::QueueSize { size, max };
            return self.fail(Error::on_queue(self.inner.name(), queue, cause));
        };
        let addresses = QueueAddresses {
            size: size16,
            descriptors,
            driver: driver_area,
            device: device_area,
        };
        // Not memory of a queue of ours, but of a driver's that the caller of `new` vouched for.
        let enabled = self.inner.enable_queue(queue, &QueueMemory::new(addresses));
        let areas = [descriptors, driver_area, device_area];
        match enabled {
            Ok(bell) => drop(self.queues.insert(queue, (Some(bell), areas))),
            Err(error) => {
                if error.cause == Cause::QueueRefused {
                    self.queues.insert(queue, (None, areas));
                }
                self.fail(error);
            }
        }
    }

    fn queue_unset(&mut self, queue: u16) {
        // Those drivers call this when they are dropped. A modern device has no way to stop a queue but a reset.
        if self.queues.contains_key(&queue) {
            self.set_status(DeviceStatus::empty());
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.queues.contains_key(&queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(self.inner.take_interrupt_causes().bits().into())
    }

    fn begin_init<F: Flags<Bits = u64> + BitAnd<Output = F> + Debug>(
        &mut self,
        supported_features: F,
    ) -> F {
        self.failed = None;
        let understood = supported_features.bits();
        // Not more than that driver knows, so the ring features that it does not know are declined.
        let declined = !understood & !RingFeatures::VERSION_1.bits();
        match crate::start::negotiate(&mut self.inner, understood, 0, declined) {
            Ok(negotiated) => F::from_bits_truncate(negotiated.accepted),
            Err(error) => {
                self.fail(error);
                F::empty()
            }
        }
    }

    fn finish_init(&mut self) {
        if self.failed.is_none()
            && let Err(error) = crate::start::driver_ok(&mut self.inner)
        {
            self.fail(error);
        }
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.config_generation()
    }

    fn read_config_space<V: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<V> {
        let mut value = V::new_zeroed();
        self.inner
            .read_config(offset, value.as_mut_bytes())
            .map_err(|_| self.out_of_range())?;
        Ok(value)
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> virtio_drivers::Result<()> {
        self.inner
            .write_config(offset, value.as_bytes())
            .map_err(|_| self.out_of_range())
    }
}

/// Where queues are whose device could not be stopped: it may still write there.
static KEPT: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// A `Hal` for drivers of `virtio-drivers` on [`IntoStock`]: `H`, but memory of a queue whose device did not come back from
/// its reset is never freed.
///
/// Those drivers free their queues when they are dropped, whatever became of the reset. What callers lent to such a driver
/// is theirs to keep; what the driver lent of its own (the receive buffers of its network driver) is out of reach here.
#[derive(Debug)]
pub struct Leaky<H>(PhantomData<H>);

#[expect(unsafe_code, reason = "hands on what it is given")]
// SAFETY: all is as `H` has it, but that some memory is not freed.
unsafe impl<H: Hal> Hal for Leaky<H> {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        H::dma_alloc(pages, direction)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let end = paddr.saturating_add((pages * PAGE_SIZE) as u64);
        if KEPT.lock().iter().any(|kept| (paddr..end).contains(kept)) {
            log::warn!(
                "{pages} pages at {paddr:#x} are leaked: a device that could not be stopped has them"
            );
            return 0;
        }
        // SAFETY: the caller's promise is the same.
        unsafe { H::dma_dealloc(paddr, vaddr, pages) }
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        // SAFETY: the caller's promise is the same.
        unsafe { H::mmio_phys_to_virt(paddr, size) }
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise is the same.
        unsafe { H::share(buffer, direction) }
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // SAFETY: the caller's promise is the same.
        unsafe { H::unshare(paddr, buffer, direction) }
    }
}
