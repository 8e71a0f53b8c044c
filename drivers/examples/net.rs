//! A network card, polled: `cargo run -p vringlet --example net`.
//!
//! The device is a card in this program's memory whose wire comes back to it.

use vringlet::fake::{FakeDevice, FakeNic};
use vringlet::net::{Net, Options};

fn main() -> Result<(), vringlet::Error> {
    let mut nic = FakeNic::new();
    nic.loopback = true;
    let card = FakeDevice::new(nic);
    // What suits a small heap.
    let options = Options {
        receive_queue_size: 8,
        receive_buffers: 8,
        transmit_queue_size: 4,
        ..Options::default()
    };
    let mut net: Net<_> = Net::new(card.transport(), options)?;
    println!("{}: mac {}, mtu {}", net.name(), net.mac(), net.mtu());

    let own = net.mac().0;
    let mut frame = net.transmit(64)?;
    frame.fill(0);
    frame[..6].copy_from_slice(&own);
    frame[6..12].copy_from_slice(&own);
    frame[14..19].copy_from_slice(b"hello");
    frame.send()?;
    // Dropping the driver resets the card, so what was sent shall have left.
    let mut looks = 1000;
    net.flush_and_wait(|| {
        looks -= 1;
        looks > 0
    })?;

    while let Some(frame) = net.receive()? {
        let text = String::from_utf8_lossy(&frame[14..19]);
        println!("{} bytes came in: {text}", frame.len());
    }
    Ok(())
}
