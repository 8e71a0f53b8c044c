//! QEMU's firmware configuration device: the script and the command line given with `-fw_cfg name=opt/...`.

#![allow(unsafe_code)]

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use spin::Once;
use x86_64::instructions::port::Port;

use crate::platform::memory::paging;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
/// The DMA address register: its high and its low half, big-endian.
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

const SIGNATURE: u16 = 0x0000;
const FEATURES: u16 = 0x0001;
const PROCESSORS: u16 = 0x0005;
const KERNEL_CMDLINE_SIZE: u16 = 0x0014;
const KERNEL_CMDLINE: u16 = 0x0015;
const DIRECTORY: u16 = 0x0019;

const FEATURE_DMA: u32 = 1 << 1;
const DMA_READ: u32 = 1 << 1;
const DMA_SELECT: u32 = 1 << 3;

/// One file's entry in the directory: size, item, two bytes unused, name.
const ENTRY_BYTES: usize = 64;
/// More files than any QEMU has.
const MAX_FILES: usize = 1024;
/// A longer file is cut here.
const MAX_BYTES: usize = 1 << 20;

struct Device {
    dma: bool,
    directory: Vec<u8>,
}

/// The device and its directory, or that there is none.
static DEVICE: Once<Option<Device>> = Once::new();

/// Whether the machine has the device.
pub fn present() -> bool {
    device().is_some()
}

/// The text of a file such as `opt/vringlet/script`. `None` if there is none.
pub fn text(name: &str) -> Option<String> {
    let device = device()?;
    let entry = device.directory.chunks_exact(ENTRY_BYTES).find(|entry| {
        let file_name = entry[8..].split(|byte| *byte == 0).next();
        file_name == Some(name.as_bytes())
    })?;
    let size = u32::from_be_bytes(*entry.first_chunk()?);
    let item = u16::from_be_bytes(*entry[4..].first_chunk()?);
    Some(device.text(item, size))
}

/// The kernel command line that QEMU itself made or was given by `-append`.
pub fn kernel_cmdline() -> Option<String> {
    let device = device()?;
    let size = device.read(KERNEL_CMDLINE_SIZE, 4);
    let size = u32::from_le_bytes(*size.first_chunk()?);
    Some(device.text(KERNEL_CMDLINE, size)).filter(|text| !text.is_empty())
}

/// How many processors the machine has.
pub fn processors() -> Option<usize> {
    let count = device()?.read(PROCESSORS, 2);
    Some(u16::from_le_bytes(*count.first_chunk()?).into())
}

/// The value of a `name=value` word in `opt/vringlet/cmdline`.
pub fn option(name: &str) -> Option<String> {
    let cmdline = text("opt/vringlet/cmdline")?;
    let mut words = cmdline
        .split_whitespace()
        .filter_map(|word| word.split_once('='));
    words
        .find(|(word, _)| *word == name)
        .map(|(_, value)| value.into())
}

fn device() -> Option<&'static Device> {
    DEVICE.call_once(find).as_ref()
}

fn find() -> Option<Device> {
    let mut device = Device {
        dma: false,
        directory: Vec::new(),
    };
    if device.read(SIGNATURE, 4) != *b"QEMU" {
        return None;
    }
    let features = u32::from_le_bytes(*device.read(FEATURES, 4).first_chunk()?);
    device.dma = features & FEATURE_DMA != 0;
    let files = u32::from_be_bytes(*device.read(DIRECTORY, 4).first_chunk()?) as usize;
    let mut directory = device.read(DIRECTORY, 4 + files.min(MAX_FILES) * ENTRY_BYTES);
    device.directory = directory.split_off(4);
    Some(device)
}

impl Device {
    fn text(&self, item: u16, size: u32) -> String {
        let bytes = self.read(item, (size as usize).min(MAX_BYTES));
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// The first bytes of an item; zeros, as the device itself gives them, beyond its end.
    fn read(&self, item: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if !self.dma || !read_by_dma(item, &mut bytes) {
            read_by_port(item, &mut bytes);
        }
        bytes
    }
}

fn read_by_port(item: u16, bytes: &mut [u8]) {
    let mut data = Port::<u8>::new(DATA);
    // SAFETY: chooses what the data port shows, and reads it; without the device the ports are nobody's.
    unsafe {
        Port::<u16>::new(SELECTOR).write(item);
        bytes.fill_with(|| data.read());
    }
}

/// Has the device write the item to memory: one exit instead of one per byte. Returns whether it did.
fn read_by_dma(item: u16, bytes: &mut [u8]) -> bool {
    /// All fields big-endian. The device writes `control`.
    #[repr(C, align(16))]
    struct Access {
        control: [u8; 4],
        length: [u8; 4],
        address: [u8; 8],
    }
    let physical = |address: usize, length| paging::contiguous_physical(address as u64, length);
    let Some(target) = physical(bytes.as_mut_ptr().addr(), bytes.len()) else {
        return false;
    };
    let mut access = Access {
        control: (u32::from(item) << 16 | DMA_SELECT | DMA_READ).to_be_bytes(),
        length: (bytes.len() as u32).to_be_bytes(),
        address: target.to_be_bytes(),
    };
    let place = &raw mut access;
    let Some(address) = physical(place.addr(), size_of::<Access>()) else {
        return false;
    };
    // SAFETY: the device reads `access` and writes `bytes`, both alive and lent to nobody else, before the second write
    // to the port ends; `control` is read back from memory because the device changed it.
    let control = unsafe {
        fence(Ordering::SeqCst);
        Port::<u32>::new(DMA_HIGH).write(((address >> 32) as u32).to_be());
        Port::<u32>::new(DMA_LOW).write((address as u32).to_be());
        fence(Ordering::SeqCst);
        (&raw const (*place).control).read_volatile()
    };
    // Zero when it is done; the error bit otherwise.
    control == [0; 4]
}
