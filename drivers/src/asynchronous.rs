//! The asynchronous face of a driver: [`Asynchronous`].

mod backlog;

use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use spin::{Mutex, MutexGuard};

use crate::driver::{Driver, Failed, Finished};
use crate::error::{Cause, Error, Result};
use crate::queue::{Ready, Token};

use self::backlog::{Backlog, Entry};

/// A driver shared by any number of tasks, each of which awaits its own requests ([`Self::perform`]), and served by one:
/// its owner, who is told of the device's interrupts ([`Self::serve`], or what that is made of).
///
/// ```
/// use std::future::{Future, poll_fn};
/// use std::pin::pin;
/// use std::sync::mpsc;
/// use std::task::{Context, Poll, Waker};
///
/// use vringlet::Buffer;
/// use vringlet::asynchronous::Asynchronous;
/// use vringlet::blk::{Blk, Options};
/// use vringlet::fake::{FakeBlk, FakeDevice};
///
/// // A RAM disk; a kernel has a `PciTransport` here.
/// let device = FakeDevice::new(FakeBlk::new(64));
/// let disk = Asynchronous::new(Blk::new(device.transport(), Options::default())?);
///
/// // The owner's task waits for interrupts.
/// let (sender, interrupts) = mpsc::channel();
/// device.on_interrupt(move |interrupt| sender.send(interrupt).unwrap());
/// let next = |_: &mut Context<'_>| match interrupts.try_recv() {
///     Ok(_) => Poll::Ready(()),
///     Err(_) => Poll::Pending,
/// };
/// let mut owner = pin!(disk.serve(async || poll_fn(next).await));
/// // Another task, and there can be any number of them.
/// let mut task = pin!(async {
///     let buffer = disk.write(3, Buffer::from(vec![7; 512])).await?;
///     disk.read(3, buffer).await
/// });
///
/// // And an executor, of the simplest kind: it polls and never sleeps.
/// let mut context = Context::from_waker(Waker::noop());
/// let read = loop {
///     if let Poll::Ready(read) = task.as_mut().poll(&mut context) {
///         break read;
///     }
///     let _ = owner.as_mut().poll(&mut context);
/// };
/// assert_eq!(*read.map_err(|failed| failed.error)?, [7; 512]);
/// # Ok::<(), vringlet::Error>(())
/// ```
///
/// - *Kicks.* Submitting wakes the owner, who kicks when its turn comes: all that the tasks submit before that share one
///   kick.
/// - *Rounds.* A kernel whose executor can call something at the end of each of its rounds needs no owner's task for
///   the data: [`Self::turn`] takes completions and gives one kick, [`Self::prepare_to_sleep`] is for before the processor
///   sleeps, and [`Self::stopped`] tells the owner when there is something to mend.
/// - *Queue full.* Requests that don't fit wait in the order in which they came, and go to the device from
///   [`Self::process`] as soon as others are done.
/// - *Order.* Each task is woken when its own request is done, in whatever order the device does them.
/// - *Cancelling.* A future may be dropped at any time. A request that waits for room is taken back; one that the device
///   has stays with the queue until the device is done with it, buffers and all.
/// - *Memory.* Nothing is allocated for a request; if it waits for room, not after as many have waited at the same time
///   before.
/// - *Results.* A request that is done keeps its place in the queue until its future is polled or dropped, so a future that
///   is kept without either takes room from others.
/// - *Budget.* No call does more than a bounded number of completions, however fast the device is: other tasks have their
///   turn, too.
/// - *Rules broken.* If the device breaks the rules of the queue it is reset at once, and all requests come back with
///   the error; so do new ones until [`Self::restart`].
///
/// No method may be called from an interrupt handler that can interrupt a task: they share a lock.
pub struct Asynchronous<D: Driver> {
    control: D::Control,
    state: Mutex<State<D>>,
}

struct State<D: Driver> {
    driver: D,
    backlog: Backlog<D::Request>,
    /// Requests that the driver has and did not find done yet.
    in_flight: usize,
    /// Requests were submitted since the last kick.
    submitted: bool,
    /// Who kicks, if it waits for something to kick for.
    owner: Option<Waker>,
    stopped: Option<Error>,
    /// Who waits for the device to be stopped.
    mender: Option<Waker>,
    /// Counts stops: a token of an earlier session names nothing that the driver has now.
    session: u32,
    /// Results of earlier sessions that nobody has fetched yet.
    settled: Vec<(Ticket, Outcome<D::Request>)>,
}

/// What becomes of a request.
type Outcome<R> = Result<R, Failed<R>>;

/// Names a request for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket {
    session: u32,
    token: Token,
}

/// How many turns [`Asynchronous::process`] takes before others have theirs.
const TURNS: usize = 8;

impl<D: Driver> Asynchronous<D> {
    /// Shares `driver`, of which nothing may be in flight.
    pub fn new(mut driver: D) -> Self {
        driver.enable_interrupts();
        let control = driver.control().clone();
        let state = State {
            driver,
            backlog: Backlog::new(),
            in_flight: 0,
            submitted: false,
            owner: None,
            stopped: None,
            mender: None,
            session: 0,
            settled: Vec::new(),
        };
        Self {
            control,
            state: Mutex::new(state),
        }
    }

    /// Whether there is nothing to do: every request is done, and none waits for room.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.unfinished() == 0
    }

    /// How many requests are with the device or wait for room.
    #[inline]
    pub fn unfinished(&self) -> usize {
        self.state.lock().unfinished()
    }

    /// For an owner who must look at a device that can't interrupt: waits until it has something to do.
    pub async fn busy(&self) {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.unfinished() > 0 {
                return Poll::Ready(());
            }
            let old = replace_waker(&mut state.owner, context.waker());
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await;
    }

    /// Has the device do a request. The future gives the request back, done or failed.
    ///
    /// Nothing happens before the future is polled.
    #[inline]
    pub fn perform(&self, request: D::Request) -> Perform<'_, D> {
        Perform {
            face: self,
            request: Some(request),
            stage: Stage::New,
        }
    }

    /// The device apart from its queues: no task waits for another that uses it.
    pub fn control(&self) -> &D::Control {
        &self.control
    }

    /// Looks at the driver, or does something with it that concerns no request. Short: tasks wait meanwhile. `f` may not
    /// use the face itself, whose lock it holds.
    pub fn with<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        f(&mut self.state.lock().driver)
    }

    /// For the owner: kicks for what is submitted, and serves the device whenever `interrupt` is done, until the device
    /// breaks the rules.
    ///
    /// What `interrupt` returns is dropped and made anew after each kick, so it may depend on what is in flight.
    pub async fn serve(&self, mut interrupt: impl AsyncFnMut()) -> Error {
        loop {
            let interrupted = {
                let mut interrupt = pin!(interrupt());
                poll_fn(|context| match self.poll_submitted(context) {
                    Poll::Ready(()) => Poll::Ready(false),
                    Poll::Pending => interrupt.as_mut().poll(context).map(|()| true),
                })
                .await
            };
            if !interrupted {
                self.kick();
                continue;
            }
            loop {
                match self.process() {
                    Ok(false) => break,
                    Ok(true) => other_tasks_first().await,
                    Err(error) => return error,
                }
            }
        }
    }

    /// For the owner: waits until something was submitted that the device must be told of.
    pub async fn submitted(&self) {
        poll_fn(|context| self.poll_submitted(context)).await;
    }

    fn poll_submitted(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.submitted {
            return Poll::Ready(());
        }
        let old = replace_waker(&mut state.owner, context.waker());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// For the owner: tells the device about everything submitted.
    pub fn kick(&self) {
        loop {
            let refused = {
                let mut state = self.state.lock();
                let refused = state.submit_waiting();
                if refused.is_none() {
                    state.kick();
                }
                refused
            };
            match refused {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// For the owner, when the device interrupted: wakes the tasks whose requests are done, gives the device what waited
    /// for room, and asks for the next interrupt.
    ///
    /// Says whether there is more to do: call it again when other tasks have had their turn.
    ///
    /// # Errors
    ///
    /// The device broke the rules and was stopped; see [`Self::stop`].
    pub fn process(&self) -> Result<bool> {
        // What is done meanwhile needs no interrupt.
        self.state.lock().driver.disable_interrupts();
        for _ in 0..TURNS {
            if !self.turn()? && !self.enable_interrupts() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Wakes the tasks whose requests are done, gives the device what waited for room, and tells it, once, of everything
    /// submitted. For the end of an executor's round; costs little when there is nothing to do.
    ///
    /// Says whether there may be more completions: call it again when other tasks have had their turn.
    ///
    /// # Errors
    ///
    /// The device broke the rules and was stopped; see [`Self::stop`].
    #[inline]
    pub fn turn(&self) -> Result<bool> {
        let mut state = self.state.lock();
        // Each completion makes room for the next: with more than there are places, one device could go on for ever.
        let mut left = state.driver.queue_size();
        while left > 0 {
            if let Some(error) = state.stopped {
                return Err(error);
            }
            match state.driver.complete() {
                Ok(Some(Ready { token, waker })) => {
                    let last = state.count_done() && state.backlog.is_empty();
                    match waker {
                        Some(waker) if last => {
                            state.kick();
                            drop(state);
                            waker.wake();
                            return Ok(false);
                        }
                        // What a waker does is not known here, so it is woken when the lock is free.
                        Some(waker) => {
                            drop(state);
                            waker.wake();
                        }
                        None => discard(state, token),
                    }
                }
                Ok(None) => match state.submit_waiting() {
                    Some(waker) => {
                        drop(state);
                        waker.wake();
                    }
                    None => {
                        state.kick();
                        return Ok(false);
                    }
                },
                Err(error) => {
                    drop(state);
                    self.stop(error);
                    return Err(error);
                }
            }
            left -= 1;
            state = self.state.lock();
        }
        state.kick();
        Ok(true)
    }

    /// Before the processor sleeps: tells the device of everything submitted, and asks for an interrupt with the next
    /// completion. `false` if there is one already, for which none may come: don't sleep, but see [`Self::turn`].
    #[inline]
    pub fn prepare_to_sleep(&self) -> bool {
        let mut state = self.state.lock();
        match state.backlog.is_empty() {
            true => state.kick(),
            false => {
                drop(state);
                self.kick();
                state = self.state.lock();
            }
        }
        !state.driver.enable_interrupts()
    }

    /// Asks for an interrupt with the next completion. Says whether there is one already, for which none may come: see
    /// [`Self::turn`].
    #[inline]
    pub fn enable_interrupts(&self) -> bool {
        self.state.lock().driver.enable_interrupts()
    }

    /// For the owner: waits until the device is stopped, for whatever reason, and says why.
    pub async fn stopped(&self) -> Error {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if let Some(error) = state.stopped {
                return Poll::Ready(error);
            }
            let old = replace_waker(&mut state.mender, context.waker());
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await
    }

    /// Resets the device and gives all requests back with `error`, as well as those to come. Requests stay behind only if
    /// the device does not come back from the reset.
    pub fn stop(&self, error: Error) {
        let wakers = {
            let mut state = self.state.lock();
            state.stop(error)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Initialises the device anew after [`Self::stop`]. Does nothing to a device that was not stopped.
    ///
    /// # Errors
    ///
    /// The device does not come back; it stays stopped.
    pub fn restart(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.stopped.is_none() {
            return Ok(());
        }
        state.driver.restart()?;
        state.driver.enable_interrupts();
        state.stopped = None;
        Ok(())
    }

    /// The request with `ticket` can't be fetched from the driver: it is not done yet, and `waker` will be woken when it is;
    /// or it was over when the device was stopped.
    #[cold]
    fn not_yet(
        &self,
        mut state: MutexGuard<'_, State<D>>,
        stage: &mut Stage,
        ticket: Ticket,
        waker: &Waker,
    ) -> Poll<Outcome<D::Request>> {
        if ticket.session != state.session {
            let outcome = state.take_settled(ticket);
            *stage = Stage::Over;
            return outcome.map_or(Poll::Pending, Poll::Ready);
        }
        let mut old = None;
        if let Some(place) = state.driver.waker(ticket.token) {
            old = replace_waker(place, waker);
        }
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Nobody waits for a request any more.
    #[cold]
    fn abandon(&self, stage: Stage) {
        let (owner, left) = {
            let mut state = self.state.lock();
            state.abandon(stage)
        };
        drop(left);
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    /// Gives the driver back.
    pub fn into_inner(self) -> D {
        self.state.into_inner().driver
    }
}

/// Is done when it is polled the second time, for which it asks at once.
async fn other_tasks_first() {
    let mut polled = false;
    poll_fn(|context| {
        if polled {
            return Poll::Ready(());
        }
        polled = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl<D: Driver> State<D> {
    /// Requests that are with the device or wait for room.
    #[inline]
    fn unfinished(&self) -> usize {
        self.in_flight + self.backlog.len()
    }

    #[inline]
    fn kick(&mut self) {
        if core::mem::take(&mut self.submitted) {
            self.driver.kick();
        }
    }

    /// The driver has taken a request.
    #[inline(always)]
    fn ticket(&mut self, token: Token) -> Ticket {
        self.submitted = true;
        self.in_flight += 1;
        Ticket {
            session: self.session,
            token,
        }
    }

    /// The driver found a request done. Says whether it has no more.
    #[inline(always)]
    fn count_done(&mut self) -> bool {
        let last = self.in_flight <= 1;
        self.in_flight = if last { 0 } else { self.in_flight - 1 };
        last
    }

    /// Hands the device what waits for room, as far as there is some, oldest first. If one is refused, gives who waits for
    /// it: wake it, and call this again.
    #[inline]
    fn submit_waiting(&mut self) -> Option<Waker> {
        match self.backlog.is_empty() {
            true => None,
            false => self.submit_backlog(),
        }
    }

    #[cold]
    fn submit_backlog(&mut self) -> Option<Waker> {
        while let Some((place, request, waker)) = self.backlog.pop() {
            match self.driver.submit(request) {
                Ok(token) => {
                    if let Some(place) = self.driver.waker(token) {
                        *place = Some(waker);
                    }
                    let ticket = self.ticket(token);
                    self.backlog.set(place, Entry::Started(ticket));
                }
                Err(rejected) if rejected.error.cause == Cause::QueueFull => {
                    self.backlog.push_front(place, rejected.payload, waker);
                    break;
                }
                Err(rejected) => {
                    self.backlog.set(place, Entry::Refused(rejected.into()));
                    return Some(waker);
                }
            }
        }
        None
    }

    /// There is room again, and someone may have waited for it. Gives the owner's waker if the owner must be told.
    #[inline]
    fn make_room(&mut self) -> Option<Waker> {
        if self.backlog.is_empty() {
            return None;
        }
        self.submitted = true;
        self.owner.take()
    }

    fn stop(&mut self, error: Error) -> Vec<Waker> {
        if self.stopped.is_some() {
            return Vec::new();
        }
        self.stopped = Some(error);
        self.submitted = false;
        self.in_flight = 0;
        let mut wakers: Vec<Waker> = self.mender.take().into_iter().collect();
        let session = self.session;
        self.session = session.wrapping_add(1);
        let mut waiting = Vec::new();
        for number in 0..self.driver.queue_size() {
            let token = Token::new(number);
            let ticket = Ticket { session, token };
            // What is done already is not touched by the reset.
            if let Some(finished) = self.driver.take(token) {
                self.settled.push((ticket, finished.into_result()));
            } else if let Some(waker) = self.driver.waker(token).and_then(Option::take) {
                waiting.push((ticket, waker));
            }
        }
        let mut returned = self.driver.reset().unwrap_or_else(|error| {
            log::error!("{error}");
            Vec::new()
        });
        for (ticket, waker) in waiting {
            // `None` is what the device did not give back.
            let is_it = |(token, _): &(Token, D::Request)| *token == ticket.token;
            let at = returned.iter().position(is_it);
            let request = at.map(|at| returned.swap_remove(at).1);
            let failed = Err(Failed { error, request });
            self.settled.push((ticket, failed));
            wakers.push(waker);
        }
        while let Some((place, request, waker)) = self.backlog.pop() {
            let request = Some(request);
            let refused = Entry::Refused(Failed { error, request });
            self.backlog.set(place, refused);
            wakers.push(waker);
        }
        wakers
    }

    /// Takes the request with `ticket` from the driver, if it is done.
    #[inline(always)]
    fn fetch(&mut self, ticket: Ticket) -> Option<Finished<D::Request>> {
        if ticket.session != self.session {
            return None;
        }
        self.driver.take(ticket.token)
    }

    fn take_settled(&mut self, ticket: Ticket) -> Option<Outcome<D::Request>> {
        let mut settled = self.settled.iter();
        let at = settled.position(|(known, _)| *known == ticket)?;
        Some(self.settled.swap_remove(at).1)
    }

    /// Nobody waits for a request any more. What is left of it is for the caller to drop, without the lock.
    fn abandon(&mut self, stage: Stage) -> (Option<Waker>, impl Sized + use<D>) {
        let (mut waker, mut outcome, mut entry) = (None, None, None);
        let ticket = match stage {
            Stage::InFlight(ticket) => Some(ticket),
            Stage::Backlog(place) => match self.backlog.remove(place) {
                Entry::Started(ticket) => Some(ticket),
                other => {
                    entry = Some(other);
                    None
                }
            },
            Stage::New | Stage::Over => None,
        };
        if let Some(ticket) = ticket {
            if ticket.session != self.session {
                outcome = self.take_settled(ticket);
            } else if let Some(finished) = self.driver.take(ticket.token) {
                outcome = Some(finished.into_result());
            } else {
                waker = self.driver.waker(ticket.token).and_then(Option::take);
            }
        }
        let owner = outcome.as_ref().and_then(|_| self.make_room());
        (owner, (waker, outcome, entry))
    }
}

/// Wakes the owner, if it waits for something to do, without the lock.
#[inline(always)]
fn tell_owner<D: Driver>(state: MutexGuard<'_, State<D>>) {
    if state.owner.is_some() {
        wake_owner(state);
    }
}

#[cold]
fn wake_owner<D: Driver>(mut state: MutexGuard<'_, State<D>>) {
    let owner = state.owner.take();
    drop(state);
    if let Some(owner) = owner {
        owner.wake();
    }
}

/// Drops a request that is done, without the lock: what dropping a buffer does is not known here.
#[cold]
fn discard<D: Driver>(mut state: MutexGuard<'_, State<D>>, token: Token) {
    let finished = state.driver.take(token);
    drop(state);
    drop(finished);
}

/// Puts a clone of `waker` into `place`; gives what was there, unless it was the same.
fn replace_waker(place: &mut Option<Waker>, waker: &Waker) -> Option<Waker> {
    match place {
        Some(known) if known.will_wake(waker) => None,
        place => place.replace(waker.clone()),
    }
}

/// A request being done. See [`Asynchronous::perform`].
#[must_use = "nothing happens before a future is polled"]
pub struct Perform<'a, D: Driver> {
    face: &'a Asynchronous<D>,
    /// Until the driver or the backlog has it.
    request: Option<D::Request>,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    New,
    /// The request waits for room, in this place.
    Backlog(usize),
    InFlight(Ticket),
    Over,
}

// Nothing in it is ever pinned.
impl<D: Driver> Unpin for Perform<'_, D> {}

impl<D: Driver> Future for Perform<'_, D> {
    type Output = Outcome<D::Request>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.fetch() {
            Some(finished) => Poll::Ready(finished.into_result()),
            None => this.advance(context, |outcome| outcome),
        }
    }
}

impl<D: Driver> Perform<'_, D> {
    /// Takes the request from the driver, if it is done: what polling finds most often in the end.
    #[inline(always)]
    pub(crate) fn fetch(&mut self) -> Option<Finished<D::Request>> {
        let Stage::InFlight(ticket) = self.stage else {
            return None;
        };
        let mut state = self.face.state.lock();
        let finished = state.fetch(ticket)?;
        let owner = state.make_room();
        drop(state);
        self.stage = Stage::Over;
        if let Some(owner) = owner {
            owner.wake();
        }
        Some(finished)
    }

    /// Polling, when [`Self::fetch`] found nothing. `finish` makes of an outcome what the caller wants.
    #[inline(always)]
    pub(crate) fn advance<O>(
        &mut self,
        context: &mut Context<'_>,
        finish: impl FnOnce(Outcome<D::Request>) -> O,
    ) -> Poll<O> {
        match self.stage {
            Stage::New => self.start(context.waker(), finish),
            _ => self.look_again(context).map(finish),
        }
    }

    /// Hands the request to the device, or lets it wait for room.
    #[inline(always)]
    fn start<O>(
        &mut self,
        waker: &Waker,
        finish: impl FnOnce(Outcome<D::Request>) -> O,
    ) -> Poll<O> {
        let mut state = self.face.state.lock();
        // Those that came first go first.
        if state.stopped.is_some() || !state.backlog.is_empty() {
            return self.wait_for_room(state, waker).map(finish);
        }
        match state.driver.accept(&mut self.request, waker) {
            Ok(token) => {
                self.stage = Stage::InFlight(state.ticket(token));
                tell_owner(state);
                Poll::Pending
            }
            Err(error) => self.not_accepted(state, error, waker).map(finish),
        }
    }

    #[cold]
    fn not_accepted(
        &mut self,
        state: MutexGuard<'_, State<D>>,
        error: Error,
        waker: &Waker,
    ) -> Poll<Outcome<D::Request>> {
        match error.cause {
            Cause::QueueFull => self.wait_for_room(state, waker),
            _ => self.refused(error),
        }
    }

    #[cold]
    fn wait_for_room(
        &mut self,
        mut state: MutexGuard<'_, State<D>>,
        waker: &Waker,
    ) -> Poll<Outcome<D::Request>> {
        if let Some(error) = state.stopped {
            return self.refused(error);
        }
        let Some(request) = self.request.take() else {
            let error = state.driver.error(Cause::EmptyRequest);
            return self.refused(error);
        };
        self.stage = Stage::Backlog(state.backlog.push(request, waker));
        tell_owner(state);
        Poll::Pending
    }

    #[cold]
    fn refused(&mut self, error: Error) -> Poll<Outcome<D::Request>> {
        self.stage = Stage::Over;
        let request = self.request.take();
        Poll::Ready(Err(Failed { error, request }))
    }

    #[cold]
    fn look_again(&mut self, context: &mut Context<'_>) -> Poll<Outcome<D::Request>> {
        match self.stage {
            Stage::InFlight(ticket) => {
                let state = self.face.state.lock();
                let waker = context.waker();
                self.face.not_yet(state, &mut self.stage, ticket, waker)
            }
            Stage::Backlog(place) => self.look_for_room(place, context),
            Stage::New | Stage::Over => Poll::Pending,
        }
    }

    #[cold]
    fn look_for_room(
        &mut self,
        place: usize,
        context: &mut Context<'_>,
    ) -> Poll<Outcome<D::Request>> {
        let found = self.face.state.lock().backlog.look(place, context.waker());
        match found {
            Ok(Entry::Started(ticket)) => {
                self.stage = Stage::InFlight(ticket);
                Pin::new(self).poll(context)
            }
            Ok(Entry::Refused(failed)) => {
                self.stage = Stage::Over;
                Poll::Ready(Err(failed))
            }
            Ok(Entry::Free | Entry::Waiting(..)) => Poll::Pending,
            Err(_old_waker) => Poll::Pending,
        }
    }
}

impl<D: Driver> Drop for Perform<'_, D> {
    #[inline]
    fn drop(&mut self) {
        if matches!(self.stage, Stage::InFlight(_) | Stage::Backlog(_)) {
            self.face.abandon(self.stage);
        }
    }
}
