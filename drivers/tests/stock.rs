//! Both ways between this crate and virtio-drivers, on fake devices.

mod common;

use common::{Data, Echo};
use virtio_drivers::device::blk::VirtIOBlk;
use vringlet::fake::{FakeBlk, FakeDevice, FakeHal, Fault, Memory};
use vringlet::init::{driver_ok, negotiate};
use vringlet::transport::compat::{FromStock, IntoStock};
use vringlet::{Cause, DeviceId, Location, Queue, QueueOptions, Transport};

#[test]
fn its_block_driver_runs_on_our_transport() {
    let memory = Memory::fresh();
    let mut disk = FakeBlk::new(64);
    disk.disk[512..1024].fill(7);
    let device = FakeDevice::new(disk);
    let transport = IntoStock::new(device.transport()).expect("a type that it knows");
    let mut blk = VirtIOBlk::<FakeHal, _>::new(transport).expect("an honest device");
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
    let mut transport = IntoStock::new(device.transport()).expect("a type that it knows");
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
    let stock = IntoStock::new(device.transport()).expect("a type that it knows");
    let location = Location::Mmio(0xfeb0_0000);
    let mut transport = FromStock::new(stock, location);
    assert_eq!(transport.name().id, DeviceId(4));
    let negotiated = negotiate(&mut transport, 0, 0, 0).expect("an honest device");
    let mut queue: Queue<FakeHal, _, Data> =
        Queue::new(&mut transport, 0, QueueOptions::default(), negotiated).expect("a queue");
    let again =
        Queue::<FakeHal, _, Data>::new(&mut transport, 0, QueueOptions::default(), negotiated);
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
