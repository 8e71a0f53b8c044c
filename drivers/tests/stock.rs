//! Both ways between this crate and virtio-drivers, on fake devices.

mod common;

use common::{Data, Echo};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus};
use vringlet::blk::{Blk, Options};
use vringlet::fake::{FakeBlk, FakeDevice, FakeDma, FakeHal, Fault, Memory, Pace};
use vringlet::start::{driver_ok, negotiate};
use vringlet::stock::{FromStock, IntoStock, Leaky};
use vringlet::{Cause, DeviceId, Location, Queue, QueueOptions, Transport};
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
