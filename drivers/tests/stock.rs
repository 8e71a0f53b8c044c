//! Both ways between this crate and virtio-drivers, on fake devices.

mod common;

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use common::{Data, Echo};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use vringlet::authoring::queue::{Queue, QueueOptions};
use vringlet::authoring::registers::{Mmio, Registers};
use vringlet::authoring::start::{driver_ok, negotiate};
use vringlet::blk::{Blk, CacheMode, Options, Request};
use vringlet::fake::{
    FakeBlk, FakeDevice, FakeDma, FakeHal, FakeMmio, FakePmem, Fault, Memory, Pace,
};
use vringlet::stock::{FromStock, IntoStock, Leaky, StockDma};
use vringlet::transport::InterruptCauses;
use vringlet::{
    Cause, DeviceId, Direction, DmaContext, Driver, Location, MmioTransport, Transport,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

fn into_stock<T: Transport>(transport: T) -> IntoStock<T> {
    // SAFETY: these tests give it to drivers of virtio-drivers, or to nobody who sets a queue up.
    unsafe { IntoStock::new(transport) }.expect("a type that it knows")
}

fn from_stock<T: Transport>(
    stock: IntoStock<T>,
    location: Location,
) -> FromStock<IntoStock<T>, FakeDma> {
    // SAFETY: what is underneath is a transport of ours, and the only one of its device.
    unsafe { FromStock::new(stock, location, FakeDma::default()) }
}

#[test]
fn a_proof_of_another_device_of_the_same_name_frees_nothing() {
    let memory = Memory::fresh();
    let (one, other) = (FakeDevice::new(Echo::new(8)), FakeDevice::new(Echo::new(8)));
    one.set_pace(Pace::Manual);
    let location = Location::Other(0);
    let mut transport = from_stock(into_stock(one.transport()), location);
    let mut namesake = from_stock(into_stock(other.transport()), location);
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("an honest device");
    let mut queue: Queue<_, Data> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    driver_ok(&mut transport).expect("an honest device");
    queue.submit(&[], Data::new(b"abc", 8)).expect("room");
    queue.kick();
    let proof = namesake.reset().expect("an honest device");
    assert!(queue.release(&proof).is_empty(), "it is not about this one");
    one.pump();
    assert!(queue.poll(&mut []).expect("an honest device").is_some());
    queue.release(&transport.reset().expect("an honest device"));
    drop(queue);
    memory.assert_clean();
}

#[test]
fn memory_of_its_driver_is_leaked_if_the_device_does_not_stop() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(64));
    let blk = VirtIOBlk::<Leaky<FakeHal>, _>::new(into_stock(device.transport()));
    let blk = blk.expect("an honest device");
    let (allocated, _) = memory.live();
    device.inject(Fault::ResetNeverEnds);
    drop(blk);
    assert_eq!(memory.live().0, allocated, "the device still has it");
}

#[test]
fn memory_of_its_driver_is_leaked_if_the_device_refused_the_queue_and_does_not_stop() {
    const QUEUE_READY: usize = 0x44;
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(64));
    let mmio = FakeMmio::new(&device);
    mmio.set_register(QUEUE_READY, 0);
    let transport = MmioTransport::new(mmio.registers(), 0xfeb0_0000, FakeDma::default());
    let transport = into_stock(transport.expect("honest registers").expect("a device"));
    let blk = VirtIOBlk::<Leaky<FakeHal>, _>::new(transport);
    let blk = blk.expect("that crate does not ask whether a queue works");
    let (allocated, _) = memory.live();
    device.inject(Fault::ResetNeverEnds);
    drop(blk);
    assert_eq!(memory.live().0, allocated, "the device may have it");
}

#[test]
fn its_block_driver_runs_on_our_transport() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(64);
    disk.disk[512..1024].fill(7);
    let device = FakeDevice::new(disk);
    let transport = into_stock(device.transport());
    let mut blk = VirtIOBlk::<Leaky<FakeHal>, _>::new(transport).expect("an honest device");
    assert_eq!(blk.capacity(), 64);
    let mut sector = [0; 512];
    blk.read_blocks(1, &mut sector).expect("a sector");
    assert_eq!(sector, [7; 512]);
    sector.fill(9);
    blk.write_blocks(63, &sector).expect("a sector");
    blk.flush().expect("a cache");
    assert!(device.with(|disk| disk.disk[63 * 512..].iter().all(|byte| *byte == 9)));
    let mut id = [0; 20];
    let len = blk.device_id(&mut id).expect("an id");
    assert_eq!(&id[..len], b"fake");
    assert!(blk.read_blocks(64, &mut sector).is_err(), "past the end");
    drop(blk);
    memory.assert_clean();
}

#[test]
fn its_driver_on_a_device_that_refuses_features_learns_why() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(8));
    device.inject(Fault::FeaturesRefused);
    let mut transport = into_stock(device.transport());
    use virtio_drivers::transport::Transport as _;
    use vringlet::features::RingFeatures;
    transport.begin_init(RingFeatures::VERSION_1);
    let failure = transport.failure().expect("FEATURES_OK was looked at");
    assert!(matches!(failure.cause, Cause::FeaturesRefused { .. }));
    // DRIVER_OK is not set behind that.
    transport.finish_init();
    memory.assert_clean();
}

#[test]
fn a_device_of_a_type_that_it_does_not_know_is_refused_by_name() {
    let memory = Memory::fresh();
    let transport = FakeDevice::new(FakePmem::new(4096)).transport();
    let name = transport.name();
    // SAFETY: nobody uses it.
    let refused = unsafe { IntoStock::new(transport) };
    let error = refused.err().expect("its list ends before this type");
    assert_eq!((error.device, error.cause), (name, Cause::NoStockType));
    memory.assert_clean();
}

#[test]
fn our_queue_runs_on_its_transport() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(16));
    let stock = into_stock(device.transport());
    let location = Location::Mmio(0xfeb0_0000);
    let mut transport = from_stock(stock, location);
    assert_eq!(transport.name().id, DeviceId(4));
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("an honest device");
    let mut queue: Queue<_, Data> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    let again = Queue::<_, Data>::new(&mut transport, 0, QueueOptions::default(), negotiated);
    assert_eq!(
        again.err().map(|error| error.cause),
        Some(Cause::QueueInUse)
    );
    driver_ok(&mut transport).expect("an honest device");
    for round in 0..40u8 {
        queue.submit(&[], Data::new(&[round; 5], 8)).expect("room");
        queue.kick();
        let completion = queue.poll(&mut []).expect("honest").expect("one");
        assert_eq!(completion.payload.writable()[..5], [round; 5]);
    }
    assert_eq!(transport.config_u64(8), Ok(0x0f0e_0d0c_0b0a_0908));
    assert_eq!(transport.config_u16(2), Ok(0x0302));
    assert!(transport.config_u32(30).is_err());
    queue.release(&transport.reset().expect("honest"));
    drop(queue);
    memory.assert_clean();
}

/// A transport of virtio-drivers that says of its device what its MMIO transport says of one with the legacy interface.
struct Legacy<T>(T);

impl<T: virtio_drivers::transport::Transport> virtio_drivers::transport::Transport for Legacy<T> {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        // There are no more than 32.
        self.0.read_device_features() & u64::from(u32::MAX)
    }
    fn write_driver_features(&mut self, driver_features: u64) {
        self.0.write_driver_features(driver_features);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }
    fn set_guest_page_size(&mut self, size: u32) {
        self.0.set_guest_page_size(size);
    }
    fn requires_legacy_layout(&self) -> bool {
        true
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, driver: u64, device: u64) {
        self.0.queue_set(queue, size, descriptors, driver, device);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }
    fn read_config_space<V: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<V> {
        self.0.read_config_space(offset)
    }
    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> virtio_drivers::Result<()> {
        self.0.write_config_space(offset, value)
    }
}

#[test]
fn a_device_with_the_legacy_interface_only_is_said_to_be_one() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(64));
    let stock = Legacy(into_stock(device.transport()));
    // SAFETY: what is underneath is a transport of ours, and the only one of its device.
    let transport =
        unsafe { FromStock::new(stock, Location::Mmio(0x0a00_0000), FakeDma::default()) };
    let name = transport.name();
    let error = Blk::new(transport, Options::default()).err();
    let error = error.expect("this crate speaks no legacy virtio");
    assert_eq!((error.device, error.cause), (name, Cause::LegacyOnly));
    memory.assert_clean();
}

#[test]
fn our_driver_runs_on_its_transport() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(FakeBlk::new(64));
    let transport = from_stock(into_stock(device.transport()), Location::Other(7));
    let mut blk = Blk::new(transport, Options::default()).expect("an honest device");
    assert!(!blk.enable_interrupts());
    assert_eq!(blk.take_interrupt_causes(), InterruptCauses::empty());
    blk.submit(Request::flush()).expect("room");
    blk.kick();
    assert_eq!(blk.take_interrupt_causes(), InterruptCauses::QUEUE);
    blk.poll().expect("an honest ring").expect("done");
    for mode in [CacheMode::WriteThrough, CacheMode::WriteBack] {
        assert_eq!(blk.set_cache_mode(mode), Ok(mode));
    }
    device.change_config(|disk| disk.disk.resize(512 * 100, 0));
    assert_eq!(blk.take_interrupt_causes(), InterruptCauses::CONFIG);
    blk.config_changed().expect("an honest device");
    assert_eq!(blk.config().capacity, 100);
    // A device that does not end its reset keeps its memory.
    device.inject(Fault::ResetNeverEnds);
    let error = blk.reset().expect_err("no end");
    assert!(matches!(error.cause, Cause::ResetTimeout { .. }));
    device.heal();
    drop(blk);
    memory.assert_clean();
}

#[test]
fn a_queue_that_cannot_be_set_up_fails_its_driver_and_says_why() {
    use virtio_drivers::transport::Transport as _;
    let memory = Memory::fresh();
    for (queue, size, cause) in [
        (
            0,
            70_000,
            Cause::QueueSize {
                size: 70_000,
                max: 256,
            },
        ),
        (9, 8, Cause::NoSuchQueue),
    ] {
        let device = FakeDevice::new(FakeBlk::new(8));
        let mut transport = into_stock(device.transport());
        transport.queue_set(queue, size, 0x1000, 0x2000, 0x3000);
        let failure = transport.failure().expect("no queue can be so");
        assert_eq!((failure.queue, failure.cause), (Some(queue), cause));
        assert!(!transport.queue_used(queue));
        // And it gives up.
        assert!(transport.get_status().contains(DeviceStatus::FAILED));
    }
    memory.take_violations();
    memory.assert_clean();
}

/// A platform with nothing to give, which takes nothing back either.
struct Barren;

// SAFETY: it gives out no memory, and one place for registers that is there for ever.
unsafe impl Hal for Barren {
    fn dma_alloc(_: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        (0, NonNull::dangling())
    }
    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        -1
    }
    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        assert_eq!(paddr, REGISTERS);
        NonNull::from(&PLACE).cast()
    }
    unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        0
    }
    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

const REGISTERS: PhysAddr = 0xfeb0_0000;
static PLACE: AtomicU32 = AtomicU32::new(0x1234_5678);

#[test]
fn what_its_platform_cannot_give_is_an_error() {
    // SAFETY: it maps one place, which is none that Rust knows as its own memory but by an atomic.
    let context = unsafe { StockDma::<Barren>::new() };
    assert_eq!(format!("{context:?}"), "StockDma");
    let allocated = context.allocate(1, Direction::Both);
    assert_eq!(allocated, Err(Cause::NoDmaMemory));
    let mut bytes = [0; 8];
    let bytes = NonNull::from(&mut bytes[..]);
    // SAFETY: nothing is lent by it.
    let lent = unsafe { context.map(bytes, Direction::ToDevice) };
    assert_eq!(lent, Err(Cause::NoDmaMemory));
    // SAFETY: it does nothing, which is only logged.
    unsafe { context.release(0x1000, NonNull::dangling(), 1) };
    let registers = Mmio::map(&context, REGISTERS, 4).expect("always the same place");
    assert_eq!(registers.read_u32(0), 0x1234_5678);
    // SAFETY: the place is there for ever, and nothing is done with it.
    let place = unsafe { Leaky::<Barren>::mmio_phys_to_virt(REGISTERS, 4) };
    assert_eq!(place.as_ptr().addr(), (&raw const PLACE).addr());
}

#[test]
fn its_platform_carries_our_queue() {
    let memory = Memory::fresh();
    let device = FakeDevice::new(Echo::new(16));
    // SAFETY: this platform maps no registers at all.
    let context = unsafe { StockDma::<FakeHal>::new() };
    let stock = into_stock(device.transport());
    // SAFETY: what is underneath is a transport of ours, and the only one of its device.
    let mut transport = unsafe { FromStock::new(stock, Location::Other(2), context) };
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("an honest device");
    let mut queue: Queue<_, Data> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    driver_ok(&mut transport).expect("an honest device");
    queue.submit(&[], Data::new(b"abc", 8)).expect("room");
    queue.kick();
    let done = queue.poll(&mut []).expect("honest").expect("one");
    assert_eq!(done.payload.writable()[..3], *b"abc");
    memory.fail_loans_after(0);
    let refused = queue.submit(&[], Data::new(b"abc", 8));
    let cause = refused.map(drop).map_err(|rejected| rejected.error.cause);
    assert_eq!(cause, Err(Cause::NoDmaMemory));
    queue.release(&transport.reset().expect("honest"));
    drop(queue);
    memory.assert_clean();
}
