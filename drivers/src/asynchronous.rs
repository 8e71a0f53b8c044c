//! The asynchronous face of a driver: [`Asynchronous`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use spin::Mutex;

use crate::driver::{Driver, Failed, Finished};
use crate::error::{Cause, Error, Result};
use crate::queue::Token;

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
/// use vringlet::fake::{FakeBlk, FakeDevice, FakeHal};
///
/// // A RAM disk; a kernel has a `PciTransport` here, and its own `Hal`.
/// let device = FakeDevice::new(FakeBlk::new(64));
/// let disk = Asynchronous::new(Blk::<FakeHal, _>::new(device.transport(), Options::default())?);
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
/// - *Queue full.* Requests that don't fit wait in the order in which they came, and go to the device from
///   [`Self::process`] as soon as others are done.
/// - *Order.* Each task is woken when its own request is done, in whatever order the device does them.
/// - *Cancelling.* A future may be dropped at any time. A request that waits for room is taken back; one that the device
///   has stays with the queue until the device is done with it, buffers and all.
/// - *Memory.* Nothing is allocated for a request, once there were as many at the same time before.
/// - *Rules broken.* If the device breaks the rules of the queue it is reset at once, and all requests come back with
///   the error; so do new ones until [`Self::restart`].
///
/// No method may be called from an interrupt handler that can interrupt a task: they share a lock.
pub struct Asynchronous<D: Driver> {
    state: Mutex<State<D>>,
}

struct State<D: Driver> {
    driver: D,
    /// One entry per future that was polled.
    tickets: Vec<Ticket<D::Request>>,
    free_tickets: Vec<usize>,
    /// Which ticket waits for the request with the token of this number. None: nobody does any more.
    waiting: Vec<Option<usize>>,
    /// Tickets whose requests wait for room.
    backlog: VecDeque<usize>,
    /// Requests were submitted since the last kick.
    submitted: bool,
    owner: Option<Waker>,
    stopped: Option<Error>,
}

enum Ticket<R> {
    Free,
    /// The request waits for room in the queue.
    Backlog(R, Waker),
    /// The device has the request.
    InFlight(Token, Waker),
    Done(Result<R, Failed<R>>),
}

/// Wakers taken out of the state, to be woken when its lock is free again: what a waker does is not known here.
const WAKERS: usize = 16;
type Wakers = [Option<Waker>; WAKERS];

impl<D: Driver> Asynchronous<D> {
    /// Shares `driver`, of which nothing may be in flight.
    pub fn new(mut driver: D) -> Self {
        driver.enable_interrupts();
        let mut waiting = Vec::new();
        waiting.resize(driver.queue_size().into(), None);
        Self {
            state: Mutex::new(State {
                driver,
                tickets: Vec::new(),
                free_tickets: Vec::new(),
                waiting,
                backlog: VecDeque::new(),
                submitted: false,
                owner: None,
                stopped: None,
            }),
        }
    }

    /// Has the device do a request. The future gives the request back, done or failed.
    ///
    /// Nothing happens before the future is polled.
    pub fn perform(&self, request: D::Request) -> Perform<'_, D> {
        Perform {
            face: self,
            stage: Stage::New(request),
        }
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
            } else if let Err(error) = self.process() {
                return error;
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
        let mut state = self.state.lock();
        if core::mem::take(&mut state.submitted) {
            state.driver.kick();
        }
    }

    /// For the owner, when the device interrupted: wakes the tasks whose requests are done, gives the device what waited
    /// for room, and asks for the next interrupt.
    ///
    /// # Errors
    ///
    /// The device broke the rules and was stopped; see [`Self::stop`].
    pub fn process(&self) -> Result<()> {
        self.state.lock().driver.disable_interrupts();
        loop {
            let mut wakers = Wakers::default();
            let more = self.state.lock().process(&mut wakers);
            wakers.into_iter().flatten().for_each(Waker::wake);
            match more {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    self.stop(error);
                    return Err(error);
                }
            }
        }
    }

    /// Resets the device and gives all requests back with `error`, as well as those to come. Requests stay behind only if
    /// the device does not come back from the reset.
    pub fn stop(&self, error: Error) {
        let wakers = self.state.lock().stop(error);
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
        let size = state.driver.queue_size().into();
        state.waiting.clear();
        state.waiting.resize(size, None);
        state.stopped = None;
        Ok(())
    }

    /// Gives the driver back.
    pub fn into_inner(self) -> D {
        self.state.into_inner().driver
    }
}

impl<D: Driver> State<D> {
    /// Hands a request to the device, or lets it wait for room. Gives its ticket, and the owner's waker if the owner must
    /// be told.
    fn start(
        &mut self,
        request: D::Request,
        waker: &Waker,
    ) -> Result<(usize, Option<Waker>), Failed<D::Request>> {
        if let Some(error) = self.stopped {
            let request = Some(request);
            return Err(Failed { error, request });
        }
        // Those that came first go first.
        if !self.backlog.is_empty() {
            return Ok((self.enqueue(request, waker), None));
        }
        match self.driver.submit(request) {
            Ok(token) => {
                let ticket = self.ticket(Ticket::InFlight(token, waker.clone()));
                self.expect(token, ticket);
                self.submitted = true;
                Ok((ticket, self.owner.take()))
            }
            Err(rejected) if rejected.error.cause == Cause::QueueFull => {
                Ok((self.enqueue(rejected.payload, waker), None))
            }
            Err(rejected) => Err(rejected.into()),
        }
    }

    fn enqueue(&mut self, request: D::Request, waker: &Waker) -> usize {
        let ticket = self.ticket(Ticket::Backlog(request, waker.clone()));
        self.backlog.push_back(ticket);
        ticket
    }

    fn ticket(&mut self, content: Ticket<D::Request>) -> usize {
        if let Some(ticket) = self.free_tickets.pop()
            && let Some(place) = self.tickets.get_mut(ticket)
        {
            *place = content;
            return ticket;
        }
        self.tickets.push(content);
        self.tickets.len() - 1
    }

    fn expect(&mut self, token: Token, ticket: usize) {
        if let Some(waiting) = self.waiting.get_mut(token.index()) {
            *waiting = Some(ticket);
        }
    }

    /// Takes completions as long as there is room for who must be woken. Says whether there may be more; if not, the
    /// device will interrupt for the next.
    fn process(&mut self, wakers: &mut Wakers) -> Result<bool> {
        if let Some(error) = self.stopped {
            return Err(error);
        }
        let mut places = wakers.iter_mut().peekable();
        while places.peek().is_some()
            && let Some(finished) = self.driver.poll()?
        {
            if let Some(waker) = self.finish(finished) {
                places.next().map(|place| place.insert(waker));
            }
        }
        while places.peek().is_some() && self.submit_next(&mut places) {}
        if core::mem::take(&mut self.submitted) {
            self.driver.kick();
        }
        // Asked for last: what is done until here needs no interrupt.
        Ok(places.peek().is_none() || self.driver.enable_interrupts())
    }

    /// Hands the device the request that has waited longest for room. Whether to go on with the next.
    fn submit_next<'a>(
        &mut self,
        places: &mut impl Iterator<Item = &'a mut Option<Waker>>,
    ) -> bool {
        let Some(ticket) = self.backlog.pop_front() else {
            return false;
        };
        let Some(place) = self.tickets.get_mut(ticket) else {
            return true;
        };
        let (request, waker) = match core::mem::replace(place, Ticket::Free) {
            Ticket::Backlog(request, waker) => (request, waker),
            other => {
                *place = other;
                return true;
            }
        };
        match self.driver.submit(request) {
            Ok(token) => {
                *place = Ticket::InFlight(token, waker);
                self.expect(token, ticket);
                self.submitted = true;
                true
            }
            Err(rejected) if rejected.error.cause == Cause::QueueFull => {
                *place = Ticket::Backlog(rejected.payload, waker);
                self.backlog.push_front(ticket);
                false
            }
            Err(rejected) => {
                *place = Ticket::Done(Err(rejected.into()));
                places.next().map(|place| place.insert(waker));
                true
            }
        }
    }

    /// Files a completion under its ticket. Gives who waits for it.
    fn finish(&mut self, finished: Finished<D::Request>) -> Option<Waker> {
        let ticket = self.waiting.get_mut(finished.token.index())?.take()?;
        self.settle(ticket, finished.into_result())
    }

    fn settle(
        &mut self,
        ticket: usize,
        result: Result<D::Request, Failed<D::Request>>,
    ) -> Option<Waker> {
        let place = self.tickets.get_mut(ticket)?;
        match core::mem::replace(place, Ticket::Done(result)) {
            Ticket::InFlight(_, waker) | Ticket::Backlog(_, waker) => Some(waker),
            Ticket::Done(_) | Ticket::Free => None,
        }
    }

    fn stop(&mut self, error: Error) -> Vec<Waker> {
        if self.stopped.is_some() {
            return Vec::new();
        }
        self.stopped = Some(error);
        self.submitted = false;
        let mut wakers = Vec::new();
        let returned = self.driver.reset().unwrap_or_else(|error| {
            log::error!("{error}");
            Vec::new()
        });
        for (token, request) in returned {
            let ticket = self.waiting.get_mut(token.index()).and_then(Option::take);
            let request = Some(request);
            let failed = Err(Failed { error, request });
            wakers.extend(ticket.and_then(|ticket| self.settle(ticket, failed)));
        }
        // What the device did not give back.
        for token in 0..self.waiting.len() {
            let ticket = self.waiting.get_mut(token).and_then(Option::take);
            let request = None;
            let failed = Err(Failed { error, request });
            wakers.extend(ticket.and_then(|ticket| self.settle(ticket, failed)));
        }
        while let Some(ticket) = self.backlog.pop_front() {
            if let Some(place) = self.tickets.get_mut(ticket)
                && let Ticket::Backlog(request, waker) = core::mem::replace(place, Ticket::Free)
            {
                let request = Some(request);
                *place = Ticket::Done(Err(Failed { error, request }));
                wakers.push(waker);
            }
        }
        wakers
    }

    /// The result that the holder of `ticket` waits for, if it is there; else `waker` will be woken for it. Gives the waker
    /// that it replaced, too, for the caller to drop without the lock.
    fn look(&mut self, ticket: usize, waker: &Waker) -> Look<D::Request> {
        let Some(place) = self.tickets.get_mut(ticket) else {
            return Look::NotYet(None);
        };
        if let Ticket::InFlight(_, known) | Ticket::Backlog(_, known) = place {
            let same = known.will_wake(waker);
            let old = (!same).then(|| core::mem::replace(known, waker.clone()));
            return Look::NotYet(old);
        }
        let content = core::mem::replace(place, Ticket::Free);
        self.free_tickets.push(ticket);
        match content {
            Ticket::Done(result) => Look::Done(result),
            _ => Look::NotYet(None),
        }
    }

    /// Nobody waits for `ticket` any more. What it held is for the caller to drop, without the lock.
    fn abandon(&mut self, ticket: usize) -> Option<Ticket<D::Request>> {
        let place = self.tickets.get_mut(ticket)?;
        let content = core::mem::replace(place, Ticket::Free);
        self.free_tickets.push(ticket);
        match &content {
            Ticket::InFlight(token, _) => {
                if let Some(waiting) = self.waiting.get_mut(token.index()) {
                    *waiting = None;
                }
            }
            Ticket::Backlog(..) => self.backlog.retain(|waiting| *waiting != ticket),
            Ticket::Done(_) | Ticket::Free => {}
        }
        Some(content)
    }
}

/// What the holder of a ticket finds.
enum Look<R> {
    Done(Result<R, Failed<R>>),
    /// The waker that was replaced, if another one was.
    NotYet(Option<Waker>),
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
    stage: Stage<D::Request>,
}

enum Stage<R> {
    New(R),
    /// Under this ticket.
    Started(usize),
    Over,
}

// Nothing in it is ever pinned.
impl<D: Driver> Unpin for Perform<'_, D> {}

impl<D: Driver> Future for Perform<'_, D> {
    type Output = Result<D::Request, Failed<D::Request>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match core::mem::replace(&mut this.stage, Stage::Over) {
            Stage::New(request) => {
                let started = this.face.state.lock().start(request, context.waker());
                match started {
                    Ok((ticket, owner)) => {
                        this.stage = Stage::Started(ticket);
                        owner.into_iter().for_each(Waker::wake);
                        Poll::Pending
                    }
                    Err(failed) => Poll::Ready(Err(failed)),
                }
            }
            Stage::Started(ticket) => {
                let look = this.face.state.lock().look(ticket, context.waker());
                match look {
                    Look::Done(result) => Poll::Ready(result),
                    Look::NotYet(_old_waker) => {
                        this.stage = Stage::Started(ticket);
                        Poll::Pending
                    }
                }
            }
            Stage::Over => Poll::Pending,
        }
    }
}

impl<D: Driver> Drop for Perform<'_, D> {
    fn drop(&mut self) {
        if let Stage::Started(ticket) = self.stage {
            let content = self.face.state.lock().abandon(ticket);
            drop(content);
        }
    }
}
