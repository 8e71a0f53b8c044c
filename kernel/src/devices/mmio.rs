//! virtio-mmio slots (microvm): where they are, and what is in them.

use alloc::vec::Vec;

use vringlet::transport::Mmio as Registers;
use vringlet::{Cause, Error};

use super::transport::Mmio;
use crate::platform::memory::dma::KernelDma;
use crate::platform::{acpi, fw_cfg, number, pci};

/// Where QEMU's microvm has its slots, when nothing says so.
const MICROVM_SLOTS: u64 = 0xfeb0_0000;
const MICROVM_STRIDE: u64 = 0x200;
const MICROVM_COUNT: u64 = 24;
/// The header, and as much configuration space as a slot has.
const SMALLEST: usize = 0x100;
const LARGEST: usize = 0x1000;

/// A place where a device may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The physical address of its registers.
    address: u64,
    bytes: usize,
    /// Its interrupt line, if that is known.
    pub(super) line: Option<u32>,
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
    let number = number::parse;
    Some(Slot {
        bytes: number(bytes)?.try_into().ok()?,
        address: number(rest.next()?)?,
        line: Some(number(rest.next()?)?.try_into().ok()?),
    })
}

impl Slot {
    /// The device in the slot; `None` if nothing is there.
    pub(super) fn open(&self) -> Result<Option<Mmio>, Error> {
        let bytes = self.bytes.clamp(SMALLEST, LARGEST);
        // Why they can't be mapped is in the log.
        let Ok(registers) = Registers::map(&KernelDma, self.address, bytes as u64) else {
            return Ok(None);
        };
        match Mmio::new(registers, self.address, KernelDma) {
            // Where no device was put, or where it was only guessed that one may be.
            Err(error) if matches!(error.cause, Cause::NotVirtioMmio { .. }) => {
                log::debug!("{error}");
                Ok(None)
            }
            result => result,
        }
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
