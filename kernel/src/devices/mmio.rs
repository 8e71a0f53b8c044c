//! virtio-mmio slots (microvm): where they are, and what is in them.

#![allow(unsafe_code)]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use vringlet::mmio::Registers;
use vringlet::transport::compat::FromStock;
use vringlet::{DeviceId, Location};

use super::{DeviceTransport, Interrupts};
use crate::memory::paging;
use crate::{acpi, fw_cfg, pci};

/// Where QEMU's microvm has its slots, when nothing says so.
const MICROVM_SLOTS: u64 = 0xfeb0_0000;
const MICROVM_STRIDE: u64 = 0x200;
const MICROVM_COUNT: u64 = 24;
/// The header, and as much configuration space as a slot has.
const SMALLEST: usize = 0x100;
const LARGEST: usize = 0x1000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const MAGIC_VALUE: usize = 0x00;
const DEVICE_ID: usize = 0x08;

/// A place where a device may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The physical address of its registers.
    pub(super) address: u64,
    bytes: usize,
    /// Its interrupt line, if that is known.
    line: Option<u32>,
}

/// The slots that ACPI names, else those of the kernel command line that microvm makes, else those that microvm has.
pub(super) fn slots() -> Vec<Slot> {
    let named = acpi::dsdt::virtio_mmio(acpi::info().dsdt);
    if !named.is_empty() {
        let slot = |device: acpi::dsdt::VirtioMmio| Slot {
            address: device.address,
            bytes: device.bytes as usize,
            line: Some(device.interrupt),
        };
        return named.into_iter().map(slot).collect();
    }
    let cmdline = fw_cfg::kernel_cmdline().unwrap_or_default();
    let told: Vec<Slot> = cmdline.split_whitespace().filter_map(parse).collect();
    // With PCI or ACPI something else may be at microvm's addresses, or we would have been told.
    let may_be_microvm =
        acpi::info().dsdt.is_empty() && pci::functions().is_empty() && fw_cfg::present();
    if !told.is_empty() || !may_be_microvm {
        return told;
    }
    (0..MICROVM_COUNT)
        .map(|number| Slot {
            address: MICROVM_SLOTS + number * MICROVM_STRIDE,
            bytes: MICROVM_STRIDE as usize,
            line: None,
        })
        .collect()
}

/// A word such as `virtio_mmio.device=512@0xfeb00e00:12`: size, address and line (Linux, virtio_mmio.c).
fn parse(word: &str) -> Option<Slot> {
    let (bytes, rest) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
    let mut rest = rest.split(':');
    let number = crate::shell::words::number;
    Some(Slot {
        bytes: number(bytes)?.try_into().ok()?,
        address: number(rest.next()?)?,
        line: Some(number(rest.next()?)?.try_into().ok()?),
    })
}

impl Slot {
    fn registers(&self) -> Option<vringlet::mmio::Mmio> {
        let bytes = self.bytes.clamp(SMALLEST, LARGEST);
        paging::registers(self.address, bytes).ok()
    }

    /// What is in the slot. `None` if nothing is.
    pub(super) fn device_id(&self) -> Option<DeviceId> {
        let registers = self.registers()?;
        if registers.read_u32(MAGIC_VALUE) != MAGIC {
            return None;
        }
        Some(registers.read_u32(DEVICE_ID))
            .filter(|id| *id != 0)
            .map(DeviceId)
    }

    /// The device's transport, and its interrupts.
    pub(super) fn open(&self, name: &str) -> Result<(DeviceTransport, Interrupts), String> {
        let bytes = self.bytes.clamp(SMALLEST, LARGEST);
        let mapped = paging::map_mmio(self.address, bytes).map_err(|error| format!("{error}"))?;
        let header: NonNull<VirtIOHeader> = mapped.cast();
        // SAFETY: the slot's registers are mapped for good, at least the header's 0x100 bytes of them, page aligned or
        // at microvm's stride, and the device has one driver.
        let transport =
            unsafe { MmioTransport::new(header, bytes) }.map_err(|error| format!("{error}"))?;
        #[expect(unsafe_code, reason = "its trait promises nothing")]
        // SAFETY: it is virtio-drivers' own transport, and the slot has no other.
        let transport = unsafe { FromStock::new(transport, Location::Mmio(self.address)) };
        let registers = self.registers().ok_or("its registers cannot be mapped")?;
        let interrupts = Interrupts::of_mmio(registers, self.line, name);
        Ok((DeviceTransport::Second(transport), interrupts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_on_the_command_line() {
        let slot = Slot {
            address: 0xfeb0_0e00,
            bytes: 512,
            line: Some(12),
        };
        assert_eq!(parse("virtio_mmio.device=512@0xfeb00e00:12"), Some(slot));
        for wrong in [
            "virtio_mmio.device=512@0xfeb00e00",
            "virtio_mmio.device=@:",
            "console=ttyS0",
            "",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
