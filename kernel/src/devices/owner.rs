//! What the owners of devices have in common. A device's owner is the task that serves it while others share it, and that
//! starts it again when it breaks the rules.

use core::future::Future;

use embassy_futures::select::{Either, select};
use vringlet::asynchronous::Asynchronous;
use vringlet::{Driver, Error};

/// How often a device that breaks the rules is started again before it is given up.
const MOST_RESTARTS: u32 = 3;

/// A device in the hands of its owner.
pub(super) struct Owner<'a, D: Driver> {
    name: &'a str,
    device: &'a Asynchronous<D>,
    restarts: u32,
}

impl<'a, D: Driver> Owner<'a, D> {
    /// Takes charge of `device`, which the log calls `name`.
    pub(super) fn new(name: &'a str, device: &'a Asynchronous<D>) -> Self {
        Self {
            name,
            device,
            restarts: 0,
        }
    }

    /// Serves the device whenever `completions` is done, until it breaks the rules or `watch` finds something wrong; then
    /// starts it again. `true`: it was, and wants to be served; `false`: it is given up, and stays stopped.
    pub(super) async fn serve(
        &mut self,
        completions: impl AsyncFnMut(),
        watch: impl Future<Output = Error>,
    ) -> bool {
        let serve = self.device.serve(completions);
        let (Either::First(error) | Either::Second(error)) = select(serve, watch).await;
        self.device.stop(error);
        log::error!("{}: {error}", self.name);
        self.restarts += 1;
        if self.restarts > MOST_RESTARTS {
            log::error!("{}: given up", self.name);
            return false;
        }
        match self.device.restart() {
            Ok(()) => {
                log::warn!("{}: started again", self.name);
                true
            }
            Err(error) => {
                log::error!("{}: given up: {error}", self.name);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::future::{pending, ready};

    use embassy_futures::block_on;
    use vringlet::queue::Rejected;
    use vringlet::{Cause, DeviceId, DeviceName, Finished, Location, Result, Token};

    use super::*;

    const NAME: DeviceName = DeviceName {
        id: DeviceId::BLK,
        location: Location::Mmio(0),
    };
    const BROKEN: Error = Error::new(NAME, Cause::NeedsReset);

    /// The driver of a device that never does anything right, but may come back from a reset.
    struct Broken {
        comes_back: bool,
        restarts: u32,
    }

    impl Broken {
        fn shared(comes_back: bool) -> Asynchronous<Self> {
            Asynchronous::new(Self {
                comes_back,
                restarts: 0,
            })
        }
    }

    impl Driver for Broken {
        type Request = ();

        fn submit(&mut self, payload: ()) -> Result<Token, Rejected<()>> {
            let error = BROKEN;
            Err(Rejected { error, payload })
        }

        fn kick(&mut self) {}

        fn poll(&mut self) -> Result<Option<Finished<()>>> {
            Err(BROKEN)
        }

        fn enable_interrupts(&mut self) -> bool {
            false
        }

        fn disable_interrupts(&mut self) {}

        fn queue_size(&self) -> u16 {
            1
        }

        fn error(&self, cause: Cause) -> Error {
            Error::new(NAME, cause)
        }

        fn reset(&mut self) -> Result<Vec<(Token, ())>> {
            Ok(Vec::new())
        }

        fn restart(&mut self) -> Result<()> {
            self.restarts += 1;
            match self.comes_back {
                true => Ok(()),
                false => Err(BROKEN),
            }
        }
    }

    #[test]
    fn a_device_that_breaks_the_rules_again_and_again_is_given_up() {
        let device = Broken::shared(true);
        let mut owner = Owner::new("blk0", &device);
        for _ in 0..MOST_RESTARTS {
            assert!(block_on(owner.serve(async || (), pending())));
        }
        assert!(!block_on(owner.serve(async || (), pending())));
        assert_eq!(device.with(|driver| driver.restarts), MOST_RESTARTS);
    }

    #[test]
    fn a_device_that_wants_to_be_reset_is_started_again() {
        let device = Broken::shared(true);
        let mut owner = Owner::new("blk0", &device);
        assert!(block_on(
            owner.serve(async || pending().await, ready(BROKEN))
        ));
        assert_eq!(device.with(|driver| driver.restarts), 1);
    }

    #[test]
    fn a_device_that_does_not_come_back_is_given_up_at_once() {
        let device = Broken::shared(false);
        let mut owner = Owner::new("blk0", &device);
        assert!(!block_on(
            owner.serve(async || pending().await, ready(BROKEN))
        ));
        assert_eq!(device.with(|driver| driver.restarts), 1);
    }
}
