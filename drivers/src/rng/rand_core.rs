//! [`RandomSource`]: an entropy device for whoever asks by the crate `rand_core`.

use rand_core::TryRngCore;

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
/// use vringlet::fake::{FakeDevice, FakeRng};
/// use vringlet::rng::{Options, RandomSource, Rng};
///
/// let device = FakeDevice::new(FakeRng::new());
/// let rng = Rng::new(device.transport(), Options::default())?;
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
pub struct RandomSource<T: Transport, P> {
    rng: Blocking<Rng<T>>,
    patience: P,
}

impl<T: Transport, P> RandomSource<T, P> {
    /// Takes bytes from `rng`. `patience` makes a new wait for each call; what a wait is, [`Blocking`] says.
    pub fn new(rng: Blocking<Rng<T>>, patience: P) -> Self {
        Self { rng, patience }
    }

    /// Gives the device back.
    pub fn into_inner(self) -> Blocking<Rng<T>> {
        self.rng
    }
}

impl<T, P, W> RandomSource<T, P>
where
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

impl<T, P, W> TryRngCore for RandomSource<T, P>
where
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
