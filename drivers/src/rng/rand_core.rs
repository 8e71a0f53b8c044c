//! [`RandomSource`]: an entropy device for whoever asks by the crate `rand_core`.

use rand_core::TryRngCore;
use virtio_drivers::Hal;

use super::Rng;
use crate::blocking::Blocking;
use crate::error::{Error, Result};
use crate::transport::Transport;

/// An entropy device as a [`TryRngCore`]. It is not marked as fit for cryptography: whether the device's bytes are is for
/// the kernel to say.
///
/// ```
/// use rand_core::TryRngCore;
/// use vringlet::blocking::Blocking;
/// use vringlet::fake::{FakeDevice, FakeHal, FakeRng};
/// use vringlet::rng::{Options, RandomSource, Rng};
///
/// let device = FakeDevice::new(FakeRng::new());
/// let rng = Rng::<FakeHal, _>::new(device.transport(), Options::default())?;
/// // Each call may ask a thousand times whether the device is done.
/// let patience = || {
///     let mut turns = 1000;
///     move || {
///         turns -= 1;
///         turns > 0
///     }
/// };
/// let mut source = RandomSource::new(Blocking::new(rng), patience);
/// assert_ne!(source.try_next_u64()?, source.try_next_u64()?);
/// # Ok::<(), vringlet::Error>(())
/// ```
pub struct RandomSource<H: Hal, T: Transport, P> {
    rng: Blocking<Rng<H, T>>,
    patience: P,
}

impl<H: Hal, T: Transport, P> RandomSource<H, T, P> {
    /// Takes bytes from `rng`. `patience` makes a new wait for each call; what a wait is, [`Blocking`] says.
    pub fn new(rng: Blocking<Rng<H, T>>, patience: P) -> Self {
        Self { rng, patience }
    }

    /// Gives the device back.
    pub fn into_inner(self) -> Blocking<Rng<H, T>> {
        self.rng
    }
}

impl<H, T, P, W> RandomSource<H, T, P>
where
    H: Hal,
    T: Transport,
    P: FnMut() -> W,
    W: FnMut() -> bool,
{
    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN]> {
        let mut bytes = [0; LEN];
        self.try_fill_bytes(&mut bytes)?;
        Ok(bytes)
    }
}

impl<H, T, P, W> TryRngCore for RandomSource<H, T, P>
where
    H: Hal,
    T: Transport,
    P: FnMut() -> W,
    W: FnMut() -> bool,
{
    type Error = Error;

    fn try_next_u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn try_next_u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.rng.fill(bytes, (self.patience)())
    }
}
