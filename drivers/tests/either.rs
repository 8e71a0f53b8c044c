//! `Either`: a kernel that keeps devices of two transports in one list.

use vringlet::blk::{Blk, CacheMode, Options};
use vringlet::blocking::Blocking;
use vringlet::fake::{
    DeviceModel, FakeBlk, FakeDevice, FakeDma, FakeMmio, FakeMmioRegisters, FakePci, FakePmem,
    FakeRegisters, Memory, PciLayout,
};
use vringlet::features::RingFeatures;
use vringlet::transport::either::Either;
use vringlet::transport::{InterruptCauses, SharedMemory};
use vringlet::{Buffer, Driver, Location, MmioTransport, PciTransport, Transport};

type Pci<M> = PciTransport<FakeDma, FakeRegisters<M>>;
type Mmio<M> = MmioTransport<FakeDma, FakeMmioRegisters<M>>;

const ADDRESS: u64 = 0xfeb0_0000;

fn pci<M: DeviceModel>(function: &FakePci<M>) -> Pci<M> {
    let mapper = function.clone();
    PciTransport::with_registers(
        &mut function.clone(),
        function.function(),
        FakeDma::default(),
        |address, len| mapper.map(address, len),
    )
    .expect("a whole function")
}

fn mmio<M: DeviceModel>(registers: &FakeMmio<M>) -> Mmio<M> {
    MmioTransport::new(registers.registers(), ADDRESS, FakeDma::default())
        .expect("honest registers")
        .expect("a device")
}

#[test]
fn disks_of_two_transports_are_of_one_type() {
    let memory = Memory::fresh();
    let devices = [(); 2].map(|()| FakeDevice::new(FakeBlk::new(64)));
    let function = FakePci::new(&devices[0], PciLayout::default());
    let registers = FakeMmio::new(&devices[1]);
    let transports: [Either<Pci<FakeBlk>, Mmio<FakeBlk>>; 2] = [
        Either::First(pci(&function)),
        Either::Second(mmio(&registers)),
    ];
    let places = [Location::Pci(function.function()), Location::Mmio(ADDRESS)];
    let mut turns = 100;
    let mut wait = || {
        turns -= 1;
        turns > 0
    };
    for ((transport, device), place) in transports.into_iter().zip(&devices).zip(places) {
        let blk = Blk::new(transport, Options::default()).expect("an honest device");
        assert_eq!(blk.name().location, place);
        let mut disk = Blocking::new(blk);
        for round in 1..=2 {
            assert!(!disk.driver().enable_interrupts());
            let block = Buffer::from(vec![round; 512]);
            disk.write(5, block, &mut wait).expect("a sector");
            assert_eq!(
                device.with(|disk| disk.disk[5 * 512..6 * 512].to_vec()),
                [round; 512]
            );
            let causes = disk.driver().take_interrupt_causes();
            assert_eq!(causes, InterruptCauses::QUEUE);
            // What is written to the configuration comes from there again.
            for mode in [CacheMode::WriteThrough, CacheMode::WriteBack] {
                assert_eq!(disk.driver().set_cache_mode(mode), Ok(mode));
            }
            device.change_config(|disk| disk.disk.resize(512 * (64 + usize::from(round)), 0));
            let causes = disk.driver().take_interrupt_causes();
            assert_eq!(causes, InterruptCauses::CONFIG);
            let change = disk.driver().config_changed().expect("an honest device");
            let capacity = change.expect("it grew").new.capacity;
            assert_eq!(capacity, 64 + u64::from(round));
            disk.driver().restart().expect("an honest device");
        }
    }
    memory.assert_clean();
}

#[test]
fn what_a_transport_knows_is_known_of_either() {
    let memory = Memory::fresh();
    let region = SharedMemory {
        id: 3,
        address: 0x10_0000_4000,
        len: 0x4000,
    };
    let device = FakeDevice::new(FakePmem::new(4096));
    let registers = FakeMmio::new(&device);
    registers.add_shared_memory(region);
    let other = FakeDevice::new(FakePmem::new(4096));
    let function = FakePci::new(
        &other,
        PciLayout {
            shared_memory: Some((region.id, region.len)),
            ..PciLayout::default()
        },
    );
    let both: [Either<Pci<FakePmem>, Mmio<FakePmem>>; 2] = [
        Either::First(pci(&function)),
        Either::Second(mmio(&registers)),
    ];
    for mut transport in both {
        let found = transport.shared_memory(3).expect("it has one");
        assert_eq!(found.len, region.len);
        assert_eq!(transport.shared_memory(4), None);
        // The context of the one that it is.
        assert_eq!(transport.dma().access_platform(), None);
        let features = RingFeatures::VERSION_1 | RingFeatures::ACCESS_PLATFORM;
        assert_eq!(transport.set_driver_features(features.bits()), Ok(()));
        assert_eq!(transport.dma().access_platform(), Some(true));
    }
    memory.assert_clean();
}
