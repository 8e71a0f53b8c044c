//! What the owners of devices have in common. [`Shared`] is a device that tasks share: completions are taken and the device
//! is kicked at the end of each round of the executor. Its owner is the task that starts it again when it breaks the rules.

use core::future::{Future, pending};
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use embassy_futures::select::{Either3, select3};
use vringlet::asynchronous::Asynchronous;
use vringlet::{Driver, Error, Report};

use super::{Interrupts, Mode};
use crate::interrupts::Event;
use crate::task::{self, EndOfRound};

/// How often a device that breaks the rules is started again before it is given up.
const MAX_RESTARTS: u32 = 3;

/// A device shared by tasks. Dereferences to the driver's asynchronous face.
pub(super) struct Shared<D: Driver> {
    face: Asynchronous<D>,
    interrupts: Interrupts,
    /// How many of its queues interrupt, from the first one on.
    queues: usize,
    /// The device was asked for an interrupt since completions were last taken.
    armed: AtomicBool,
    /// For a task that wants to know of interrupts, too.
    notice: Option<Event>,
}

impl<D: Driver> Deref for Shared<D> {
    type Target = Asynchronous<D>;

    fn deref(&self) -> &Self::Target {
        &self.face
    }
}

impl<D: Driver> Shared<D> {
    /// Shares the device of `driver`, the first `queues` of whose queues interrupt.
    pub(super) fn new(driver: D, interrupts: Interrupts, queues: usize) -> Self {
        Self {
            face: Asynchronous::new(driver),
            interrupts,
            queues,
            armed: AtomicBool::new(true),
            notice: None,
        }
    }

    /// The same, and one task can wait for [`Self::interrupted`].
    pub(super) fn with_notice(self) -> Self {
        let notice = Some(Event::new());
        Self { notice, ..self }
    }

    /// Waits until what came with an interrupt was taken.
    pub(super) async fn interrupted(&self) {
        match &self.notice {
            Some(notice) => notice.wait().await,
            None => pending().await,
        }
    }

    /// How the device is heard.
    pub(super) fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Fills in what only the kernel knows of a report.
    pub(super) fn complete(&self, mut report: Report) -> Report {
        for queue in report.queues.iter_mut().take(self.queues) {
            queue.stats.interrupts = self.interrupts.count(queue.index);
        }
        report
    }

    /// Looks at a device that can't interrupt while it has something to do.
    async fn look_now_and_then(&self) {
        loop {
            match self.interrupts.mode() {
                Mode::Polled => {}
                Mode::MsiX | Mode::Line(_) | Mode::None => return pending().await,
            }
            self.face.busy().await;
            // Completions are taken at the end of the round in which this wakes.
            self.interrupts.next_look().await;
        }
    }
}

impl<D: Driver> EndOfRound for Shared<D> {
    #[inline]
    fn end_round(&self) -> bool {
        let interrupted = self.interrupts.take(self.queues);
        if self.face.is_idle() && !interrupted {
            return false;
        }
        self.armed.store(false, Ordering::Relaxed);
        // The owner is told of an error by `stopped`.
        let more = self.face.turn().unwrap_or(false);
        if let Some(notice) = &self.notice
            && interrupted
        {
            notice.raise();
        }
        more
    }

    #[inline]
    fn prepare_to_sleep(&self) -> bool {
        if self.armed.load(Ordering::Relaxed) {
            return true;
        }
        let asked = !self.face.enable_interrupts();
        self.armed.store(asked, Ordering::Relaxed);
        asked
    }
}

/// A device in the hands of its owner.
pub(super) struct Owner<'a, D: Driver> {
    name: &'a str,
    device: &'a Shared<D>,
    restarts: u32,
}

impl<'a, D: Driver> Owner<'a, D> {
    /// Takes charge of `device`, which the log calls `name`.
    pub(super) fn new(name: &'a str, device: &'a Shared<D>) -> Self {
        Self {
            name,
            device,
            restarts: 0,
        }
    }

    /// Waits until the device breaks the rules or `watch` finds something wrong; then starts it again. `true`: it was, and
    /// wants to be watched; `false`: it is given up, and stays stopped.
    pub(super) async fn serve(&mut self, watch: impl Future<Output = Error>) -> bool {
        let (stopped, looks) = (self.device.stopped(), self.device.look_now_and_then());
        let error = match select3(stopped, watch, looks).await {
            Either3::First(error) | Either3::Second(error) => error,
            Either3::Third(()) => return true,
        };
        self.device.stop(error);
        log::error!("{}: {error}", self.name);
        self.restarts += 1;
        if self.restarts > MAX_RESTARTS {
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

impl<D: Driver + 'static> Shared<D> {
    /// Has the device served from now on.
    pub(super) fn serve(&'static self) {
        task::serve(self);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::future::ready;

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
        fn shared(comes_back: bool) -> Shared<Self> {
            let driver = Self {
                comes_back,
                restarts: 0,
            };
            Shared::new(driver, Interrupts::none(), 1)
        }
    }

    impl Driver for Broken {
        type Request = ();

        fn submit(&mut self, payload: ()) -> Result<Token, Rejected<()>> {
            let error = BROKEN;
            Err(Rejected { error, payload })
        }

        fn kick(&mut self) {}

        fn complete(&mut self) -> Result<Option<Token>> {
            Err(BROKEN)
        }

        fn take(&mut self, _: Token) -> Option<Finished<()>> {
            None
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
        for _ in 0..MAX_RESTARTS {
            assert!(block_on(owner.serve(ready(BROKEN))));
        }
        assert!(!block_on(owner.serve(ready(BROKEN))));
        assert_eq!(device.with(|driver| driver.restarts), MAX_RESTARTS);
    }

    #[test]
    fn a_device_that_wants_to_be_reset_is_started_again() {
        let device = Broken::shared(true);
        let mut owner = Owner::new("blk0", &device);
        assert!(block_on(owner.serve(ready(BROKEN))));
        assert_eq!(device.with(|driver| driver.restarts), 1);
    }

    #[test]
    fn a_device_that_does_not_come_back_is_given_up_at_once() {
        let device = Broken::shared(false);
        let mut owner = Owner::new("blk0", &device);
        assert!(!block_on(owner.serve(ready(BROKEN))));
        assert_eq!(device.with(|driver| driver.restarts), 1);
    }
}
