//! The device configuration, read and written over each transport.

use vringlet::authoring::start::negotiate;
use vringlet::fake::{
    DeviceModel, FakeDevice, FakeDma, FakeMmio, FakePci, FakeTransport, Memory, PciLayout, Queues,
};
use vringlet::stock::{FromStock, IntoStock};
use vringlet::{Cause, DeviceId, Location, MmioTransport, PciTransport, Transport};

/// Keeps what is written to its configuration, and offset and length of each access.
struct Scratch {
    bytes: [u8; 32],
    accesses: Vec<(usize, usize)>,
}

impl DeviceModel for Scratch {
    fn id(&self) -> DeviceId {
        DeviceId::RNG
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }
    fn config(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.accesses.push((offset, bytes.len()));
    }
    fn process(&mut self, _: u16, _: &mut Queues<'_>) {}
}

/// Writes in every width what reads the same then. `long` is how 8 bytes are written.
fn read_and_write<T: Transport>(
    device: &FakeDevice<Scratch>,
    transport: &mut T,
    long: &[(usize, usize)],
) {
    negotiate(transport, 0, 0, 0).expect("an honest device");
    let mut write = |offset: usize, bytes: &[u8]| {
        transport.write_config(offset, bytes).expect("inside");
        let mut read = vec![0; bytes.len()];
        transport.read_config(offset, &mut read).expect("inside");
        assert_eq!(read, bytes);
        device.with(|model| std::mem::take(&mut model.accesses))
    };
    assert_eq!(write(31, &[1]), [(31, 1)]);
    assert_eq!(write(2, &[2, 3]), [(2, 2)]);
    assert_eq!(write(4, &[4, 5, 6, 7]), [(4, 4)]);
    assert_eq!(write(8, &[8, 9, 10, 11, 12, 13, 14, 15]), long);
    // What is no number is so many bytes.
    assert_eq!(write(17, &[16, 17, 18]), [(17, 1), (18, 1), (19, 1)]);
    for offset in [32, usize::MAX] {
        let written = transport.write_config(offset, &[0]);
        let cause = Cause::ConfigOutOfRange { offset, len: 1 };
        assert_eq!(written.map_err(|error| error.cause), Err(cause));
        let read = transport.read_config(offset, &mut [0]);
        assert_eq!(read.map_err(|error| error.cause), Err(cause));
    }
    transport.reset().expect("an honest device");
}

fn scratch() -> FakeDevice<Scratch> {
    FakeDevice::new(Scratch {
        bytes: [0; 32],
        accesses: Vec::new(),
    })
}

#[test]
fn it_is_written_over_pci() {
    let memory = Memory::fresh();
    let device = scratch();
    let function = FakePci::new(&device, PciLayout::default());
    let transport = PciTransport::with_registers(
        &mut function.clone(),
        function.function(),
        FakeDma::default(),
        |address, len| function.map(address, len),
    );
    let mut transport = transport.expect("a whole function");
    read_and_write(&device, &mut transport, &[(8, 4), (12, 4)]);
    memory.assert_clean();
}

#[test]
fn it_is_written_over_mmio() {
    let memory = Memory::fresh();
    let device = scratch();
    let registers = FakeMmio::new(&device).registers_of(0x100 + 32);
    let transport = MmioTransport::new(registers, 0xfeb0_0000, FakeDma::default());
    let mut transport = transport.expect("honest registers").expect("a device");
    read_and_write(&device, &mut transport, &[(8, 4), (12, 4)]);
    memory.assert_clean();
}

#[test]
fn it_is_written_over_a_transport_of_virtio_drivers() {
    let memory = Memory::fresh();
    let device = scratch();
    // SAFETY: nobody sets a queue up.
    let stock = unsafe { IntoStock::<FakeTransport<Scratch>>::new(device.transport()) };
    let stock = stock.expect("a type that it knows");
    // SAFETY: what is underneath is a transport of ours, and the only one of its device.
    let mut transport = unsafe { FromStock::new(stock, Location::Other(1), FakeDma::default()) };
    // That trait promises no width beyond four.
    let bytes: Vec<_> = (8..16).map(|offset| (offset, 1)).collect();
    read_and_write(&device, &mut transport, &bytes);
    memory.assert_clean();
}
