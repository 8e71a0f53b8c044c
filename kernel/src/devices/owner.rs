//! What the owners of devices have in common. [`Shared`] is a device that tasks share: it is kicked when all tasks that were
//! woken have run, and completions are taken at the end of each round of the executor. Its owner is the task that starts it
//! again when it breaks the rules or answers nothing any more.

use alloc::vec::Vec;
use core::future::{Future, pending};
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use embassy_futures::select::{Either4, select4};
use spin::LazyLock;
use vringlet::asynchronous::Asynchronous;
use vringlet::{Cause, Device, Driver, Error, QueueReport, Report};

use super::{Interrupts, Mode};
use crate::platform::fw_cfg;
use crate::platform::interrupts::Event;
use crate::platform::time::{self, Instant};
use crate::runtime::task::{self, EndOfRound};

/// How often a device that breaks the rules is started again before it is given up.
const MAX_RESTARTS: u32 = 3;

/// How long a device may have requests and give none of them back, if the command line does not say.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a device is looked at in that time.
const LOOKS: u32 = 8;

/// How long a device may have requests and give none of them back: `timeout=SECONDS` of the kernel's command line.
pub fn timeout() -> Duration {
    static SET: LazyLock<Duration> = LazyLock::new(|| {
        let Some(text) = fw_cfg::option("timeout") else {
            return TIMEOUT;
        };
        match text.parse() {
            Ok(seconds @ 1..=MAX_SECONDS) => Duration::from_secs(seconds),
            _ => {
                let default = TIMEOUT.as_secs();
                log::warn!("timeout={text}: not 1 to {MAX_SECONDS} seconds; using {default}");
                TIMEOUT
            }
        }
    });
    /// A day.
    const MAX_SECONDS: u64 = 24 * 60 * 60;
    *SET
}

/// That a device gave nothing back in [`timeout`].
pub(super) fn unanswered() -> Cause {
    let seconds = timeout().as_secs();
    Cause::Unanswered { seconds }
}

/// A device shared by tasks. Dereferences to the driver's asynchronous face.
pub(super) struct Shared<D: Driver> {
    face: Asynchronous<D>,
    interrupts: Interrupts,
    /// How many of its queues interrupt, from the first one on.
    queues: usize,
    /// The device was asked for an interrupt since completions were last taken.
    armed: AtomicBool,
    /// It completed something then, and that was found without an interrupt. Noted until it is heard for the first time.
    silent: AtomicBool,
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
            silent: AtomicBool::new(false),
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

    /// The driver's account of the device, with the interrupts that only the kernel counts.
    pub(super) fn report(&self) -> Report {
        let mut report = self.face.with(|driver| driver.report());
        for queue in report.queues.iter_mut().take(self.queues) {
            queue.stats.interrupts = self.interrupts.count(queue.index);
        }
        report
    }

    /// Follows the device's configuration, and calls `changed` with what changed in it, until the device wants to be reset.
    pub(super) async fn watch_config(
        &self,
        changed: impl Fn(<D::Control as Device>::Change),
    ) -> Error {
        loop {
            self.interrupts.config().await;
            match self.face.control().config_changed() {
                Ok(Some(change)) => changed(change),
                Ok(None) => {}
                Err(error) if error.cause == Cause::NeedsReset => return error,
                Err(error) => log::warn!("{error}"),
            }
        }
    }

    /// Looks at a device that can't interrupt while it has something to do; and at one that should, until it is heard.
    async fn look_now_and_then(&self) {
        loop {
            match self.interrupts.mode() {
                Mode::Polled => {
                    self.face.busy().await;
                    // Completions are taken whenever the processor wakes, which this has it do.
                    self.interrupts.next_look().await;
                }
                Mode::MsiX | Mode::Line(_) if !self.interrupts.is_heard() => {
                    self.face.busy().await;
                    let completed = || match self.silent.load(Ordering::Relaxed) {
                        true => Some(true),
                        false => (!self.face.is_idle()).then_some(false),
                    };
                    self.interrupts.listen(completed).await;
                }
                Mode::MsiX | Mode::Line(_) | Mode::None => return pending().await,
            }
        }
    }

    /// Waits until one of `queues` had requests for so long and gave none back; says which. Sets no timer while the device
    /// has nothing to do.
    async fn overdue(&self, timeout: Duration, queues: impl Fn() -> Vec<QueueReport>) -> u16 {
        let mut progress = Progress::default();
        let mut told = false;
        loop {
            self.face.busy().await;
            loop {
                let seen = queues();
                told = told || self.tell_violation(&seen);
                if !progress.look(&seen, time::now()) {
                    break;
                }
                time::after(timeout / LOOKS).await;
                if let Some(queue) = progress.overdue(&queues(), time::now(), timeout) {
                    return queue;
                }
            }
            // It may be busy with what is not watched.
            time::after(timeout / LOOKS).await;
        }
    }

    /// Tells of the first thing that a device claimed and can't be, if there was one: what does no harm to the queue is only
    /// counted there.
    fn tell_violation(&self, queues: &[QueueReport]) -> bool {
        let mut claims = queues
            .iter()
            .filter_map(|queue| Some((queue.index, queue.stats.first_violation?)));
        let Some((queue, claim)) = claims.next() else {
            return false;
        };
        let device = self.face.with(|driver| driver.error(claim)).device;
        log::warn!("{}", Error::on_queue(device, queue, claim));
        true
    }
}

impl<D: Driver> EndOfRound for Shared<D> {
    #[inline]
    fn end_round(&self) -> bool {
        let interrupted = self.interrupts.take(self.queues);
        let asked = self.armed.load(Ordering::Relaxed);
        // A device that was not asked for an interrupt may have something without one, such as an event: see
        // `prepare_to_sleep`.
        if asked && !interrupted && self.face.is_idle() {
            return false;
        }
        self.armed.store(false, Ordering::Relaxed);
        let unheard = asked && !interrupted && !self.interrupts.is_heard();
        let before = unheard.then(|| self.face.unfinished());
        // The owner is told of an error by `stopped`.
        let more = self.face.turn().unwrap_or(false);
        if before.is_some_and(|before| self.face.unfinished() < before) {
            self.silent.store(true, Ordering::Relaxed);
        }
        if let Some(notice) = &self.notice
            && interrupted
        {
            notice.raise();
        }
        more
    }

    #[inline]
    fn prepare_to_sleep(&self) -> bool {
        // An idle device that is asked already has nothing but what it interrupted for, such as an event.
        if self.armed.load(Ordering::Relaxed) && self.face.is_idle() {
            return !self.interrupts.has_come(self.queues);
        }
        let asked = self.face.prepare_to_sleep();
        self.armed.store(asked, Ordering::Relaxed);
        asked
    }
}

/// A device in the hands of its owner.
pub(super) struct Owner<'a, D: Driver> {
    name: &'a str,
    device: &'a Shared<D>,
    timeout: Duration,
    restarts: u32,
}

impl<'a, D: Driver> Owner<'a, D> {
    /// Takes charge of `device`, which the log calls `name` and which must give back something in `timeout` while it has
    /// something.
    pub(super) fn new(name: &'a str, device: &'a Shared<D>, timeout: Duration) -> Self {
        Self {
            name,
            device,
            timeout,
            restarts: 0,
        }
    }

    /// Waits until the device breaks the rules, `watch` finds something wrong, or one of its `queues` has requests and
    /// nothing comes back; then starts it again. `true`: it was, and wants to be watched; `false`: it is given up, and stays
    /// stopped.
    ///
    /// `queues` are those whose requests the device answers soon, whatever happens.
    pub(super) async fn serve(
        &mut self,
        watch: impl Future<Output = Error>,
        queues: impl Fn() -> Vec<QueueReport>,
    ) -> bool {
        let device = self.device;
        let overdue = device.overdue(self.timeout, queues);
        let looks = device.look_now_and_then();
        let error = match select4(device.stopped(), watch, overdue, looks).await {
            Either4::First(error) | Either4::Second(error) => error,
            Either4::Third(queue) => {
                let seconds = self.timeout.as_secs();
                let cause = Cause::Unanswered { seconds };
                let error = device.with(|driver| driver.error(cause));
                Error::on_queue(error.device, queue, cause)
            }
            Either4::Fourth(()) => return true,
        };
        device.stop(error);
        log::error!("{}: {error}", self.name);
        self.restarts += 1;
        if self.restarts > MAX_RESTARTS {
            log::error!("{}: given up", self.name);
            return false;
        }
        match device.restart() {
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

/// Since when each queue has had requests and given none back.
#[derive(Default)]
struct Progress(Vec<Waiting>);

struct Waiting {
    queue: u16,
    completed: u64,
    since: Instant,
}

impl Progress {
    /// Notes what came back; says whether anything is awaited.
    fn look(&mut self, queues: &[QueueReport], now: Instant) -> bool {
        let busy = queues.iter().filter(|queue| queue.in_flight > 0);
        let waiting = busy.map(|queue| {
            let completed = queue.stats.completed;
            let same =
                |known: &&Waiting| (known.queue, known.completed) == (queue.index, completed);
            Waiting {
                queue: queue.index,
                completed,
                since: self.0.iter().find(same).map_or(now, |known| known.since),
            }
        });
        self.0 = waiting.collect();
        !self.0.is_empty()
    }

    /// As [`look`](Self::look); gives the first queue that gave nothing back for so long.
    fn overdue(&mut self, queues: &[QueueReport], now: Instant, timeout: Duration) -> Option<u16> {
        self.look(queues, now);
        let overdue = |waiting: &&Waiting| waiting.since.until(now) >= timeout;
        self.0.iter().find(overdue).map(|waiting| waiting.queue)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::convert::Infallible;
    use core::future::ready;
    use core::pin::pin;
    use core::task::{Context, Waker};

    use embassy_futures::block_on;
    use embassy_futures::select::{Either, select};
    use vringlet::authoring::queue::{QueueStats, Ready, Rejected};
    use vringlet::features::Negotiated;
    use vringlet::transport::InterruptCauses;
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
        /// There is something to be taken when the device is asked for an interrupt.
        has_come: bool,
        /// It has no room for requests.
        is_full: bool,
        /// How often it was given one.
        tries: u32,
        restarts: u32,
    }

    #[derive(Clone)]
    struct BrokenControl;

    impl Device for BrokenControl {
        type Change = Infallible;

        fn name(&self) -> DeviceName {
            NAME
        }

        fn negotiated(&self) -> Negotiated {
            Negotiated {
                offered: 0,
                accepted: 0,
            }
        }

        fn take_interrupt_causes(&self) -> InterruptCauses {
            InterruptCauses::empty()
        }

        fn config_changed(&self) -> Result<Option<Infallible>> {
            Err(BROKEN)
        }
    }

    impl Broken {
        fn shared(comes_back: bool) -> Shared<Self> {
            let driver = Self {
                comes_back,
                has_come: false,
                is_full: false,
                tries: 0,
                restarts: 0,
            };
            Shared::new(driver, Interrupts::none(), 1)
        }
    }

    impl Driver for Broken {
        type Request = ();
        type Control = BrokenControl;

        fn control(&self) -> &BrokenControl {
            &BrokenControl
        }

        fn report(&self) -> Report {
            Report {
                device: NAME,
                negotiated: BrokenControl.negotiated(),
                feature_names: &[],
                queues: Vec::new(),
                config_changes: 0,
                counters: Vec::new(),
            }
        }

        fn submit(&mut self, payload: ()) -> Result<Token, Rejected<()>> {
            self.tries += 1;
            let error = match self.is_full {
                true => self.error(Cause::QueueFull),
                false => BROKEN,
            };
            Err(Rejected { error, payload })
        }

        fn kick(&mut self) {}

        fn waker(&mut self, _: Token) -> Option<&mut Option<Waker>> {
            None
        }

        fn complete(&mut self) -> Result<Option<Ready>> {
            Err(BROKEN)
        }

        fn take(&mut self, _: Token) -> Option<Finished<()>> {
            None
        }

        fn enable_interrupts(&mut self) -> bool {
            self.has_come
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

    /// Ends a round, in which the device is looked at: it breaks the rules then.
    fn assert_is_looked_at(device: &Shared<Broken>) {
        device.end_round();
        let stopped = block_on(select(device.stopped(), ready(())));
        assert!(
            matches!(stopped, Either::First(BROKEN)),
            "it was not looked at"
        );
    }

    #[test]
    fn completions_found_before_a_sleep_keep_the_processor_awake() {
        let device = Broken::shared(true);
        device.armed.store(false, Ordering::Relaxed);
        device.with(|driver| driver.has_come = true);
        assert!(!device.prepare_to_sleep(), "something is there already");
        assert_is_looked_at(&device);
    }

    #[test]
    fn an_interrupt_after_the_last_look_keeps_the_processor_awake() {
        let device = Broken::shared(true);
        assert!(device.prepare_to_sleep(), "it has nothing to do");
        device.interrupts.raise(InterruptCauses::QUEUE);
        assert!(!device.prepare_to_sleep(), "it interrupted");
        assert_is_looked_at(&device);
    }

    #[test]
    fn what_was_given_to_an_idle_device_gets_to_it_before_a_sleep() {
        let device = Broken::shared(true);
        device.with(|driver| driver.is_full = true);
        assert!(device.prepare_to_sleep(), "it has nothing to do");
        let mut request = pin!(device.perform(()));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(request.as_mut().poll(context).is_pending());
        assert!(device.prepare_to_sleep(), "nothing has come yet");
        assert_eq!(device.with(|driver| driver.tries), 2);
    }

    #[test]
    fn a_device_that_breaks_the_rules_again_and_again_is_given_up() {
        let device = Broken::shared(true);
        let mut owner = Owner::new("blk0", &device, TIMEOUT);
        for _ in 0..MAX_RESTARTS {
            assert!(block_on(owner.serve(ready(BROKEN), Vec::new)));
        }
        assert!(!block_on(owner.serve(ready(BROKEN), Vec::new)));
        assert_eq!(device.with(|driver| driver.restarts), MAX_RESTARTS);
    }

    #[test]
    fn a_device_that_wants_to_be_reset_is_started_again() {
        let device = Broken::shared(true);
        let mut owner = Owner::new("blk0", &device, TIMEOUT);
        assert!(block_on(owner.serve(ready(BROKEN), Vec::new)));
        assert_eq!(device.with(|driver| driver.restarts), 1);
    }

    #[test]
    fn a_device_that_does_not_come_back_is_given_up_at_once() {
        let device = Broken::shared(false);
        let mut owner = Owner::new("blk0", &device, TIMEOUT);
        assert!(!block_on(owner.serve(ready(BROKEN), Vec::new)));
        assert_eq!(device.with(|driver| driver.restarts), 1);
    }

    /// One queue with requests, some of which came back.
    fn queue(index: u16, in_flight: u16, completed: u64) -> QueueReport {
        QueueReport {
            name: "q",
            index,
            size: 8,
            in_flight,
            stats: QueueStats {
                completed,
                ..QueueStats::default()
            },
        }
    }

    #[test]
    fn a_queue_is_overdue_only_when_it_completes_none_of_its_requests_for_the_whole_timeout() {
        let second = Duration::from_secs(1);
        let timeout = 10 * second;
        let start = time::now();
        let at = |seconds: u32| start + second * seconds;
        let mut progress = Progress::default();
        // One request comes back every nine seconds.
        for step in 0..20 {
            let queues = [queue(0, 4, step.into()), queue(1, 0, 0)];
            let overdue = progress.overdue(&queues, at(9 * step), timeout);
            assert_eq!(overdue, None);
        }
        // The time of a queue begins when it has something, not when it last gave something back.
        let mut progress = Progress::default();
        assert!(!progress.look(&[queue(0, 0, 7)], at(0)));
        for seconds in [100, 105, 109] {
            let overdue = progress.overdue(&[queue(0, 1, 7)], at(seconds), timeout);
            assert_eq!(overdue, None);
        }
        let queues = [queue(0, 1, 7)];
        assert_eq!(progress.overdue(&queues, at(110), timeout), Some(0));
        // Another queue that works is no excuse.
        let mut progress = Progress::default();
        for seconds in 0..10 {
            let queues = [queue(0, 1, seconds.into()), queue(2, 3, 5)];
            assert_eq!(progress.overdue(&queues, at(seconds), timeout), None);
        }
        let queues = [queue(0, 1, 10), queue(2, 3, 5)];
        assert_eq!(progress.overdue(&queues, at(10), timeout), Some(2));
        // It was empty in between.
        let mut progress = Progress::default();
        assert!(progress.look(&[queue(0, 1, 1)], at(0)));
        assert!(!progress.look(&[queue(0, 0, 1)], at(5)));
        let queues = [queue(0, 1, 1)];
        assert_eq!(progress.overdue(&queues, at(12), timeout), None);
    }
}
