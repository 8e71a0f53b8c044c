//! The blocking face of a driver: [`Blocking`].

use core::task::Waker;

use crate::driver::{Driver, Failed};
use crate::error::{Cause, Result};
use crate::queue::Token;

/// A driver with one user, who waits for each request, without interrupts: for boot loaders, panics and tests.
///
/// Every method that waits takes `wait`, which is called again and again while there is nothing to do: it may spin, or let
/// the processor do other things, and returns whether to wait on. Returning false after some time, or some number of
/// calls, is what bounds the wait.
pub struct Blocking<D: Driver> {
    driver: D,
}

impl<D: Driver> Blocking<D> {
    /// Takes over `driver`, of which nothing may be in flight.
    // Inlined, it would move a large value field by field, which is more code.
    #[inline(never)]
    pub fn new(mut driver: D) -> Self {
        driver.disable_interrupts();
        Self { driver }
    }

    /// The driver.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Gives the driver back.
    pub fn into_inner(self) -> D {
        self.driver
    }

    /// Has the device do a request, and waits for it.
    ///
    /// # Errors
    ///
    /// [`Cause::Timeout`] when `wait` returned false. If the device has the request then, the queue keeps it until the
    /// device is done with it, and a later call frees it. If the device breaks the rules of the queue it is reset, and
    /// must be restarted ([`Driver::restart`]).
    pub fn perform(
        &mut self,
        request: D::Request,
        mut wait: impl FnMut() -> bool,
    ) -> Result<D::Request, Failed<D::Request>> {
        self.wait_for(request, &mut wait)
    }

    /// The code of [`Self::perform`], once for all the closures that a kernel has to wait.
    fn wait_for(
        &mut self,
        request: D::Request,
        wait: &mut dyn FnMut() -> bool,
    ) -> Result<D::Request, Failed<D::Request>> {
        let mut request = Some(request);
        let token = loop {
            let error = match self.driver.accept(&mut request, Waker::noop()) {
                Ok(token) => break token,
                // Full of requests that were waited for too long.
                Err(error) if error.cause == Cause::QueueFull => match self.driver.poll() {
                    Ok(Some(_)) => continue,
                    Ok(None) if wait() => continue,
                    Ok(None) => self.driver.error(Cause::Timeout),
                    Err(error) => {
                        self.reset(None);
                        error
                    }
                },
                Err(error) => error,
            };
            return Err(Failed { error, request });
        };
        self.driver.kick();
        loop {
            let (error, request) = match self.driver.poll() {
                Ok(Some(finished)) if finished.token == token => return finished.into_result(),
                Ok(Some(_)) => continue,
                Ok(None) if wait() => continue,
                Ok(None) => (self.driver.error(Cause::Timeout), None),
                Err(error) => (error, self.reset(Some(token))),
            };
            return Err(Failed { error, request });
        }
    }

    /// Resets the device and picks the request with this token from those that it had.
    fn reset(&mut self, wanted: Option<Token>) -> Option<D::Request> {
        match self.driver.reset() {
            Ok(returned) => returned
                .into_iter()
                .find_map(|(token, request)| (Some(token) == wanted).then_some(request)),
            Err(error) => {
                log::error!("{error}");
                None
            }
        }
    }
}
