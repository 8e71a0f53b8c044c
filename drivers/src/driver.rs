//! What [`crate::asynchronous`] and [`crate::blocking`] need of a device driver, and what all three faces of it speak of.

use alloc::vec::Vec;
use core::fmt;
use core::task::Waker;

use crate::device::DeviceName;
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{Ready, Rejected, Token};
use crate::report::Report;
use crate::transport::InterruptCauses;

/// A device apart from its queues: what is done now and then, by whoever has a clone of it, while others submit requests and
/// take completions. [`Control`](crate::start::Control) is the one of all drivers of this crate.
pub trait Device: Clone + Send + Sync {
    /// What may have become different when the device announced a change of its configuration.
    type Change;

    /// Which device.
    fn name(&self) -> DeviceName;

    /// The features offered and accepted.
    fn negotiated(&self) -> Negotiated;

    /// Reads and clears why the device interrupted: with INTx, and when polling. See
    /// [`Transport::take_interrupt_causes`](crate::Transport::take_interrupt_causes).
    fn take_interrupt_causes(&self) -> InterruptCauses;

    /// To be called when the device announced a change of its configuration: it is read anew. Gives what is different, if
    /// anything is that matters; a device with one interrupt for everything announces with each.
    ///
    /// # Errors
    ///
    /// The device gave up and must be restarted ([`Cause::NeedsReset`]), or the new configuration is impossible, in which
    /// case the old one stays in use.
    fn config_changed(&self) -> Result<Option<Self::Change>>;
}

/// The non-blocking core of a driver: requests go in, the same requests come out when the device is done with them.
///
/// It is one owner's. What does not concern requests goes through [`Self::control`], of which others can have clones.
pub trait Driver: Send {
    /// A request with its buffers.
    type Request: Send;

    /// The device apart from its queues.
    type Control: Device;

    /// The device apart from its queues.
    fn control(&self) -> &Self::Control;

    /// The driver's account of the device. What its counters mean is in the documentation of the driver's type.
    fn report(&self) -> Report;

    /// Hands a request to the queue; the device learns of it with the next [`Self::kick`].
    ///
    /// # Errors
    ///
    /// The request comes back: it can't succeed on this device, or [`Cause::QueueFull`] says that it will fit when
    /// others are done. With nothing in flight and nothing left to be taken, nothing is refused for that.
    fn submit(&mut self, request: Self::Request) -> Result<Token, Rejected<Self::Request>>;

    /// As [`Self::submit`], but takes the request out of its place only when it is accepted: a driver on a hot path moves it
    /// only once. `waker` is who is to be told when it is done.
    ///
    /// # Errors
    ///
    /// As for [`Self::submit`]; the request is where it was.
    fn accept(&mut self, request: &mut Option<Self::Request>, waker: &Waker) -> Result<Token> {
        let Some(taken) = request.take() else {
            return Err(self.error(Cause::EmptyRequest));
        };
        match self.submit(taken) {
            Ok(token) => {
                if let Some(place) = self.waker(token) {
                    *place = Some(waker.clone());
                }
                Ok(token)
            }
            Err(rejected) => {
                *request = Some(rejected.payload);
                Err(rejected.error)
            }
        }
    }

    /// Who is to be told when a request is done; `None` if there is no such request, or [`Self::complete`] found it.
    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>>;

    /// Tells the device about everything submitted, at most once for all of it.
    fn kick(&mut self);

    /// Finds the next request that the device is done with, in the device's order, and says who is to be told. It keeps its
    /// token, and its place, until it is taken ([`Self::take`]).
    ///
    /// # Errors
    ///
    /// The device broke the rules of the queue: nothing comes from it any more until [`Self::restart`].
    fn complete(&mut self) -> Result<Option<Ready>>;

    /// Takes a request that [`Self::complete`] found; `None` if it did not.
    fn take(&mut self, token: Token) -> Option<Finished<Self::Request>>;

    /// Takes the next request that the device is done with: [`Self::complete`] and [`Self::take`] in one.
    ///
    /// # Errors
    ///
    /// As for [`Self::complete`].
    fn poll(&mut self) -> Result<Option<Finished<Self::Request>>> {
        Ok(match self.complete()? {
            Some(ready) => self.take(ready.token),
            None => None,
        })
    }

    /// Asks for an interrupt with the next completion. Returns whether there is one already: poll again.
    fn enable_interrupts(&mut self) -> bool;

    /// Asks for no interrupts.
    fn disable_interrupts(&mut self);

    /// Every token's number is below this: how many requests there can be that are not taken yet.
    fn queue_size(&self) -> u16;

    /// `cause` as an error of this device's queue.
    fn error(&self, cause: Cause) -> Error;

    /// Resets the device and gives back what was in flight; what is done and not taken yet is lost. Nothing can be submitted
    /// until [`Self::restart`].
    ///
    /// # Errors
    ///
    /// The device does not come back from the reset, in which case it keeps what it has.
    fn reset(&mut self) -> Result<Vec<(Token, Self::Request)>>;

    /// Initialises the device anew after [`Self::reset`].
    ///
    /// # Errors
    ///
    /// The device breaks the rules of initialisation or its configuration is impossible, as when the driver was made, or it
    /// does not come back from the reset. It can be tried again.
    fn restart(&mut self) -> Result<()>;
}

/// A request that the device is done with.
#[derive(Debug)]
pub struct Finished<R> {
    /// What named it while it was in flight.
    pub token: Token,
    /// The request, with its buffers.
    pub request: R,
    /// Whether the device did it. If not, the contents of buffers that it was to fill mean nothing.
    pub result: Result<()>,
}

/// A request that failed.
#[derive(Debug)]
pub struct Failed<R> {
    /// Why.
    pub error: Error,
    /// The request, with its buffers; `None` if the device still has it, and the queue will free it when the device is
    /// done.
    pub request: Option<R>,
}

impl<R> Failed<R> {
    /// The same failure with what `f` makes of the request.
    #[inline(always)]
    pub fn map<S>(self, f: impl FnOnce(R) -> S) -> Failed<S> {
        Failed {
            error: self.error,
            request: self.request.map(f),
        }
    }
}

impl<R> fmt::Display for Failed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        match self.request {
            Some(_) => Ok(()),
            None => f.write_str(" (and the device has the request)"),
        }
    }
}

impl<R: fmt::Debug> core::error::Error for Failed<R> {}

impl<R> From<Rejected<R>> for Failed<R> {
    fn from(rejected: Rejected<R>) -> Self {
        Self {
            error: rejected.error,
            request: Some(rejected.payload),
        }
    }
}

impl<R> From<Failed<R>> for Error {
    fn from(failed: Failed<R>) -> Self {
        failed.error
    }
}

impl<R> Finished<R> {
    /// The request if the device did it.
    ///
    /// # Errors
    ///
    /// What the device or the driver found wrong, with the request.
    #[inline(always)]
    pub fn into_result(self) -> Result<R, Failed<R>> {
        match self.result {
            Ok(()) => Ok(self.request),
            Err(error) => Err(Failed {
                error,
                request: Some(self.request),
            }),
        }
    }
}
