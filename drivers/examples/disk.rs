//! A disk by the blocking face: `cargo run -p vringlet --example disk`.
//!
//! The device is a RAM disk in this program's memory. A kernel has a transport of its own in its place; the rest is the same.

use vringlet::Buffer;

use vringlet::blk::{Blk, Options};
use vringlet::blocking::Blocking;
use vringlet::fake::{FakeBlk, FakeDevice};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = FakeDevice::new(FakeBlk::new(2048));
    let disk = Blk::<_>::new(device.transport(), Options::default())?;
    let config = disk.config();
    println!("{}: {} bytes", disk.name(), config.bytes());

    let mut disk = Blocking::new(disk);
    // How long to wait is the caller's business: here, for a number of looks at the device.
    let patience = || {
        let mut looks = 1000;
        move || {
            looks -= 1;
            looks > 0
        }
    };
    let mut block = vec![0; config.block_size as usize];
    block[..5].copy_from_slice(b"hello");
    disk.write(100, Buffer::from(block), patience())?;
    disk.flush(patience())?;
    let block = disk.read(100, Buffer::from(vec![0; 512]), patience())?;
    println!(
        "sector 100 begins with {:?}",
        String::from_utf8_lossy(&block[..5])
    );

    // A mistake is found before the device is asked, and the buffer comes back with the error.
    if let Err(failed) = disk.read(5000, block, patience()) {
        println!("sector 5000: {failed}");
    }
    Ok(())
}
