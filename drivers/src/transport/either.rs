//! [`Either`]: one type for devices on two kinds of transport, for a kernel that keeps all its disks in one list.

use super::{
    Instance, InterruptCauses, Notifier, QueueMemory, Quiesced, SharedMemory, Status, Transport,
};
use crate::device::DeviceName;
use crate::error::Result;

/// One transport or another, with the same kind of DMA context.
#[derive(Debug)]
pub enum Either<A, B> {
    /// The one.
    First(A),
    /// The other.
    Second(B),
}

macro_rules! either {
    ($self:ident, $inner:ident => $result:expr) => {
        match $self {
            Either::First($inner) => $result,
            Either::Second($inner) => $result,
        }
    };
}

#[expect(unsafe_code, reason = "keeps the promises of `Transport`")]
// SAFETY: every call goes on to the one that it is.
unsafe impl<A: Transport, B: Transport<Dma = A::Dma>> Transport for Either<A, B> {
    type Notifier = Either<A::Notifier, B::Notifier>;
    type Dma = A::Dma;

    fn name(&self) -> DeviceName {
        either!(self, inner => inner.name())
    }

    fn instance(&self) -> &Instance {
        either!(self, inner => inner.instance())
    }

    fn dma(&self) -> &A::Dma {
        either!(self, inner => inner.dma())
    }

    fn reset(&mut self) -> Result<Quiesced> {
        either!(self, inner => inner.reset())
    }

    fn status(&self) -> Status {
        either!(self, inner => inner.status())
    }

    fn set_status(&mut self, status: Status) {
        either!(self, inner => inner.set_status(status))
    }

    fn device_features(&mut self) -> u64 {
        either!(self, inner => inner.device_features())
    }

    fn set_driver_features(&mut self, features: u64) -> Result<()> {
        either!(self, inner => inner.set_driver_features(features))
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        either!(self, inner => inner.queue_max_size(index))
    }

    fn enable_queue(&mut self, index: u16, queue: &QueueMemory<'_>) -> Result<Self::Notifier> {
        match self {
            Self::First(inner) => inner.enable_queue(index, queue).map(Either::First),
            Self::Second(inner) => inner.enable_queue(index, queue).map(Either::Second),
        }
    }

    fn config_generation(&self) -> u32 {
        either!(self, inner => inner.config_generation())
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        either!(self, inner => inner.read_config(offset, bytes))
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        either!(self, inner => inner.write_config(offset, bytes))
    }

    fn take_interrupt_causes(&mut self) -> InterruptCauses {
        either!(self, inner => inner.take_interrupt_causes())
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        either!(self, inner => inner.shared_memory(id))
    }
}

impl<A: Notifier, B: Notifier> Notifier for Either<A, B> {
    #[inline]
    fn notify(&self) {
        either!(self, inner => inner.notify())
    }
}
