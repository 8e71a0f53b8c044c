//! MSI-X: a table of messages that the device sends as interrupts (PCI 3.0, 6.8.2; spec 4.1.5.1.2).

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use super::capability::MsixCapability;
use crate::error::Cause;
use crate::registers::Registers;

/// What a device is told where no vector is to be used (spec 4.1.4.3).
pub(super) const NO_VECTOR: u16 = 0xffff;

const CONTROL_ENABLE: u32 = 1 << 31;
const CONTROL_MASK_ALL: u32 = 1 << 30;

const ENTRY_LEN: usize = 16;
const ENTRY_ADDRESS: usize = 0;
const ENTRY_DATA: usize = 8;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u32 = 1;

/// A write to memory that reaches the CPU as an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Physical address to write to.
    pub(crate) address: u64,
    /// The value to write.
    pub(crate) data: u32,
}

impl Message {
    /// The message that is a write of `data` to the physical address `address`.
    ///
    /// # Safety
    ///
    /// The device may make that write at any time, so it must do nothing to memory: it is for the platform's interrupt
    /// controller.
    #[expect(unsafe_code, reason = "a device writes where it says")]
    pub const unsafe fn new(address: u64, data: u32) -> Self {
        Self { address, data }
    }

    /// Physical address to write to.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The value to write.
    pub const fn data(&self) -> u32 {
        self.data
    }
}

/// A function's MSI-X table, once it is in use.
#[derive(Debug)]
pub(super) struct Msix<R> {
    table: R,
    /// Entries with a message in them; the others stay masked.
    in_use: u16,
}

impl<R: Registers> Msix<R> {
    /// Fills the table with `messages`, no more than it has entries, and turns MSI-X on.
    pub(super) fn enable<C: ConfigurationAccess>(
        table: R,
        capability: &MsixCapability,
        config: &mut C,
        function: DeviceFunction,
        messages: &[Message],
    ) -> Self {
        let in_use = capability.vectors.min(messages.len() as u16);
        // On with everything masked, so that no half-written entry fires (PCI 3.0, 6.8.3.4).
        let header = config.read_word(function, capability.offset);
        let header = header | CONTROL_ENABLE | CONTROL_MASK_ALL;
        config.write_word(function, capability.offset, header);
        for entry in 0..usize::from(capability.vectors) {
            let at = entry * ENTRY_LEN;
            table.write_u32(at + ENTRY_CONTROL, ENTRY_MASKED);
            if let Some(message) = messages.get(entry) {
                table.write_u64(at + ENTRY_ADDRESS, message.address);
                table.write_u32(at + ENTRY_DATA, message.data);
                table.write_u32(at + ENTRY_CONTROL, 0);
            }
        }
        config.write_word(function, capability.offset, header & !CONTROL_MASK_ALL);
        Self { table, in_use }
    }

    /// Redirects entry `vector`.
    pub(super) fn set_message(&self, vector: u16, message: Message) -> Result<(), Cause> {
        if vector >= self.in_use {
            return Err(Cause::VectorRefused(vector));
        }
        let at = usize::from(vector) * ENTRY_LEN;
        self.table.write_u32(at + ENTRY_CONTROL, ENTRY_MASKED);
        self.table.write_u64(at + ENTRY_ADDRESS, message.address);
        self.table.write_u32(at + ENTRY_DATA, message.data);
        self.table.write_u32(at + ENTRY_CONTROL, 0);
        Ok(())
    }

    /// The entry for configuration changes: the first.
    pub(super) fn config_vector(&self) -> u16 {
        if self.in_use > 0 { 0 } else { NO_VECTOR }
    }

    /// The entry for queue `index`: one of its own while they last, the last one shared by the rest.
    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        match self.in_use {
            0 => NO_VECTOR,
            in_use => index.saturating_add(1).min(in_use - 1),
        }
    }
}
