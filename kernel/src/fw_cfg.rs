//! QEMU's firmware configuration device: the script and the command line given with `-fw_cfg name=opt/...`.

#![allow(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;
use x86_64::instructions::port::Port;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const SIGNATURE_ITEM: u16 = 0x0000;
const KERNEL_CMDLINE_SIZE_ITEM: u16 = 0x0014;
const KERNEL_CMDLINE_ITEM: u16 = 0x0015;
const DIRECTORY_ITEM: u16 = 0x0019;
/// More files than any QEMU has.
const MAX_FILES: u32 = 1024;
/// A longer file is cut here.
const MAX_BYTES: u32 = 1 << 20;

/// The device reads on from the last item selected, so one reader at a time.
static DEVICE: Mutex<()> = Mutex::new(());

/// Whether the machine has the device.
pub fn present() -> bool {
    let _device = DEVICE.lock();
    select(SIGNATURE_ITEM);
    read_array() == *b"QEMU"
}

/// The text of a file such as `opt/vringlet/script`. `None` if there is none.
pub fn text(name: &str) -> Option<String> {
    let (item, size) = find(name)?;
    let _device = DEVICE.lock();
    Some(read_text(item, size))
}

/// The kernel command line that QEMU itself made or was given by `-append`.
pub fn kernel_cmdline() -> Option<String> {
    if !present() {
        return None;
    }
    let _device = DEVICE.lock();
    select(KERNEL_CMDLINE_SIZE_ITEM);
    let size = u32::from_le_bytes(read_array());
    Some(read_text(KERNEL_CMDLINE_ITEM, size)).filter(|text| !text.is_empty())
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

fn find(name: &str) -> Option<(u16, u32)> {
    if !present() {
        return None;
    }
    let _device = DEVICE.lock();
    select(DIRECTORY_ITEM);
    let files = u32::from_be_bytes(read_array()).min(MAX_FILES);
    (0..files).find_map(|_| {
        let size = u32::from_be_bytes(read_array());
        let item = u16::from_be_bytes(read_array());
        let _reserved: [u8; 2] = read_array();
        let file_name: [u8; 56] = read_array();
        let file_name = file_name.split(|byte| *byte == 0).next()?;
        (file_name == name.as_bytes()).then_some((item, size))
    })
}

fn read_text(item: u16, size: u32) -> String {
    select(item);
    let bytes: Vec<u8> = (0..size.min(MAX_BYTES)).map(|_| read()).collect();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn read_array<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| read())
}

fn select(item: u16) {
    // SAFETY: chooses what the data port shows; without the device the port is nobody's.
    unsafe { Port::<u16>::new(SELECTOR).write(item) };
}

fn read() -> u8 {
    // SAFETY: reads the next byte of the item.
    unsafe { Port::<u8>::new(DATA).read() }
}
