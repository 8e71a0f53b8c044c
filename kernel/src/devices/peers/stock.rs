//! The disk driver of `virtio-drivers`, as its documentation has it used: with as many requests in flight as its queue holds.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use vringlet::stock::Leaky;

use super::{Heard, KernelHal, Transport, take, text};

type Disk = VirtIOBlk<Leaky<KernelHal>, Transport>;

/// What is done.
#[derive(Clone, Copy)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes, with a flush after each if that is said.
    Write {
        /// It is.
        flush: bool,
    },
}

/// How much of it.
pub struct Load {
    /// What.
    pub access: Access,
    /// Bytes of a request.
    pub bytes: usize,
    /// Requests in flight.
    pub depth: usize,
    /// Requests in all.
    pub count: u64,
}

/// A request's memory.
struct Slot {
    request: BlkReq,
    response: BlkResp,
    bytes: &'static mut [u8],
}

impl Slot {
    fn begin(&mut self, disk: &mut Disk, access: Access, sector: usize) -> Result<u16, String> {
        let Self {
            request,
            response,
            bytes,
        } = self;
        // SAFETY: slots are leaked, and nobody touches this one before `complete`.
        let begun = unsafe {
            match access {
                Access::Read => disk.read_blocks_nb(sector, request, bytes, response),
                Access::Write { .. } => disk.write_blocks_nb(sector, request, bytes, response),
            }
        };
        begun.map_err(text)
    }

    fn complete(&mut self, disk: &mut Disk, access: Access, token: u16) -> Result<(), String> {
        let Self {
            request,
            response,
            bytes,
        } = self;
        // SAFETY: the same memory as in `begin`.
        let completed = unsafe {
            match access {
                Access::Read => disk.complete_read_blocks(token, request, bytes, response),
                Access::Write { .. } => disk.complete_write_blocks(token, request, bytes, response),
            }
        };
        completed.map_err(text)
    }
}

/// Makes the driver, and gives what does `load` at the places that `next` says, in sectors.
pub fn run(
    load: Load,
    mut next: impl FnMut(u64) -> u64,
) -> Result<impl Future<Output = Result<(), String>>, String> {
    let (transport, interrupts) = take()?;
    let disk = Disk::new(transport).map_err(text)?;
    let Load {
        access,
        bytes,
        depth,
        count,
    } = load;
    let most = usize::from(disk.virt_queue_size());
    if !(1..=most).contains(&depth) {
        return Err(alloc::format!("its queue holds {most}"));
    }
    let sectors = (bytes / SECTOR_SIZE) as u64;
    let places = disk.capacity() / sectors.max(1);
    let heard = Heard::serve(interrupts);
    let slot = |_| Slot {
        request: BlkReq::default(),
        response: BlkResp::default(),
        bytes: vec![0; bytes].leak(),
    };
    let slots: &'static mut [Slot] = (0..depth).map(slot).collect::<Vec<_>>().leak();
    let mut owner = vec![0; most];
    Ok(async move {
        // Never freed, whatever becomes of this.
        let disk: &'static mut Disk = Box::leak(Box::new(disk));
        let (mut begun, mut done) = (0, 0);
        let mut sector = || (next(places) * sectors) as usize;
        for (index, slot) in slots.iter_mut().enumerate().take(count as usize) {
            let token = slot.begin(disk, access, sector())?;
            note(&mut owner, token, index);
            begun += 1;
        }
        while done < count {
            let Some(token) = disk.peek_used() else {
                heard.event.wait().await;
                continue;
            };
            let index = owner.get(usize::from(token)).copied();
            let slot = index.and_then(|index| slots.get_mut(index));
            let slot = slot.ok_or("a token of nobody's")?;
            slot.complete(disk, access, token)?;
            done += 1;
            if let Access::Write { flush: true } = access {
                // It spins, as that driver's flush does.
                disk.flush().map_err(text)?;
            }
            if begun < count {
                let token = slot.begin(disk, access, sector())?;
                note(&mut owner, token, index.unwrap_or(0));
                begun += 1;
            }
        }
        Ok(())
    })
}

fn note(owner: &mut [usize], token: u16, index: usize) {
    if let Some(owner) = owner.get_mut(usize::from(token)) {
        *owner = index;
    }
}
