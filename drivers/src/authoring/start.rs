//! The one way in which every driver starts its device (spec 3.1.1), starts it again, and lets go of it.
//!
//! A driver says in its [`Session`] what is peculiar to its type: features, configuration, queues. What comes of it is two
//! parts, which can have different owners:
//!
//! - [`Control`] is for what is done now and then: the configuration and its changes, and why the device interrupted. It can
//!   be cloned and used by any number of tasks.
//! - [`Started`] is the session with its queues, for the driver's data path, which takes no lock. It resets the device when it
//!   is dropped. A changed configuration reaches it by a number that it compares before each request.

use alloc::sync::Arc;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;

use crate::device::{DeviceId, DeviceName};
use crate::driver::Device;
use crate::error::{Cause, Error, Result};
use crate::features::{Negotiated, RingFeatures, SUPPORTED};
use crate::queue::AnyQueue;
use crate::transport::{InterruptCauses, Quiesced, Status, Transport};

/// What the start of a device makes, anew each time: what its configuration says, and its queues.
pub trait Session<T: Transport>: Sized {
    /// How the device is to be driven.
    type Options;

    /// What the device's configuration says.
    type Config: Clone + Send;

    /// What may have become different when the device announced a change of its configuration.
    type Change;

    /// The device type.
    const ID: DeviceId;

    /// The type's own features that the driver implements.
    const UNDERSTOOD: u64;

    /// Those of them without which it can't work.
    const REQUIRED: u64 = 0;

    /// Features to do without this time, of those that the driver would understand.
    fn declined(transport: &mut T, options: &Self::Options) -> u64;

    /// Reads the configuration and checks it.
    ///
    /// # Errors
    ///
    /// The device can't be driven as it is.
    fn configure(
        transport: &mut T,
        options: &Self::Options,
        negotiated: Negotiated,
    ) -> Result<Self::Config>;

    /// Makes the queues ([`Queue::allocate`](super::queue::Queue::allocate)). The device knows none of them yet, so this may fail
    /// anywhere.
    ///
    /// # Errors
    ///
    /// The device can't be driven as it is, or memory is short.
    fn make(
        transport: &mut T,
        options: &Self::Options,
        config: &Self::Config,
        negotiated: Negotiated,
    ) -> Result<Self>;

    /// Calls `visit` with each queue.
    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>));

    /// DRIVER_OK is set: what was submitted to the queues before can be published.
    fn begin(&mut self) {}

    /// The device announced a change of its configuration: reads it anew. Says what is different, if that matters. Without
    /// this, nothing is.
    ///
    /// # Errors
    ///
    /// The new configuration is impossible; the old one stays.
    fn reconfigure(device: &mut Configured<T, Self::Config>) -> Result<Option<Self::Change>> {
        let _ = device;
        Ok(None)
    }

    /// The configuration is another now.
    fn follow(&mut self, config: &Self::Config) {
        let _ = config;
    }
}

/// A device, what was agreed on with it, and what its configuration says.
pub struct Configured<T, C> {
    /// The way to the device.
    pub transport: T,
    /// The features offered and accepted.
    pub negotiated: Negotiated,
    /// The configuration as last read.
    pub config: C,
    /// How many changes of it the device announced.
    pub announced: u64,
    /// How many of them changed anything that matters.
    pub changed: u64,
}

/// A device apart from its queues: see [`Device`].
pub struct Control<T: Transport, S: Session<T>>(Arc<Shared<T, S::Config>>);

struct Shared<T, C> {
    name: DeviceName,
    /// How often the configuration became another.
    generation: AtomicU32,
    device: Mutex<Configured<T, C>>,
}

impl<T: Transport, S: Session<T>> Clone for Control<T, S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Transport, S: Session<T>> Control<T, S> {
    /// Which device.
    pub fn name(&self) -> DeviceName {
        self.0.name
    }

    /// The features offered and accepted.
    pub fn negotiated(&self) -> Negotiated {
        self.0.device.lock().negotiated
    }

    /// The configuration as last read: when the device was started, and by [`Self::config_changed`].
    pub fn config(&self) -> S::Config {
        self.0.device.lock().config.clone()
    }

    /// How many changes of the configuration the device announced.
    pub fn changes_announced(&self) -> u64 {
        self.0.device.lock().announced
    }

    /// How many of them changed anything that matters.
    pub fn changes(&self) -> u64 {
        self.0.device.lock().changed
    }

    /// See [`Device::take_interrupt_causes`].
    pub fn take_interrupt_causes(&self) -> InterruptCauses {
        self.0.device.lock().transport.take_interrupt_causes()
    }

    /// See [`Device::config_changed`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn config_changed(&self) -> Result<Option<S::Change>> {
        self.change(|device| {
            device.announced += 1;
            let status = device.transport.status();
            if status.contains(Status::DEVICE_NEEDS_RESET) {
                return Err(Error::new(self.name(), Cause::NeedsReset));
            }
            let change = S::reconfigure(device)?;
            device.changed += u64::from(change.is_some());
            Ok(change)
        })
    }

    /// Looks at the device. Short: others wait meanwhile. `f` may not use this or a clone of it.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Configured<T, S::Config>) -> R) -> R {
        f(&mut self.0.device.lock())
    }

    /// The same, and the configuration may be another afterwards.
    pub(crate) fn change<R>(&self, f: impl FnOnce(&mut Configured<T, S::Config>) -> R) -> R {
        let mut device = self.0.device.lock();
        let result = f(&mut device);
        // Under the lock, so that none is lost.
        self.0.generation.fetch_add(1, Ordering::Relaxed);
        result
    }
}

impl<T: Transport, S: Session<T>> Device for Control<T, S> {
    type Change = S::Change;

    fn name(&self) -> DeviceName {
        self.name()
    }

    fn negotiated(&self) -> Negotiated {
        self.negotiated()
    }

    fn take_interrupt_causes(&self) -> InterruptCauses {
        self.take_interrupt_causes()
    }

    fn config_changed(&self) -> Result<Option<S::Change>> {
        self.config_changed()
    }
}

impl<T: Transport, S: Session<T>> fmt::Debug for Control<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({})", self.name())
    }
}

/// A device that was started, with its session. It is reset when it is dropped.
pub struct Started<T: Transport, S: Session<T>> {
    control: Control<T, S>,
    options: S::Options,
    negotiated: Negotiated,
    /// Of the configuration that the session follows.
    generation: u32,
    session: S,
    /// The device was reset for the last time, or could not be.
    over: bool,
}

impl<T: Transport, S: Session<T>> Started<T, S> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// The device is of another type ([`Cause::WrongDeviceType`]) and was not touched, or breaks the rules of
    /// initialisation, or what [`Session::configure`] and [`Session::make`] say. It is left with FAILED set, or reset; nothing
    /// is leaked unless it does not come back from the reset.
    // Inlined, it would move a large value field by field, which is more code.
    #[inline(never)]
    pub fn new(mut transport: T, options: S::Options) -> Result<Self> {
        let name = transport.name();
        if name.id != S::ID {
            let expected = S::ID.0;
            return Err(Error::new(name, Cause::WrongDeviceType { expected }));
        }
        let (negotiated, config, session) = start::<T, S>(&mut transport, &options)?;
        let generation = 0;
        let control = Control(Arc::new(Shared {
            name,
            generation: AtomicU32::new(generation),
            device: Mutex::new(Configured {
                transport,
                negotiated,
                config,
                announced: 0,
                changed: 0,
            }),
        }));
        Ok(Self {
            control,
            options,
            negotiated,
            generation,
            session,
            over: false,
        })
    }

    /// The device apart from its queues.
    pub fn control(&self) -> &Control<T, S> {
        &self.control
    }

    /// How the device is driven.
    pub fn options(&self) -> &S::Options {
        &self.options
    }

    /// The features offered and accepted.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Has the session follow the configuration, if that has become another: before each request.
    #[inline(always)]
    pub fn refresh(&mut self) {
        if self.control.0.generation.load(Ordering::Relaxed) != self.generation {
            self.follow();
        }
    }

    #[cold]
    fn follow(&mut self) {
        let device = self.control.0.device.lock();
        self.generation = self.control.0.generation.load(Ordering::Relaxed);
        self.session.follow(&device.config);
    }

    /// Resets the device. The queues are the caller's to release.
    ///
    /// # Errors
    ///
    /// The device does not come back from the reset.
    pub fn reset(&mut self) -> Result<Quiesced> {
        self.control.with(|device| device.transport.reset())
    }

    /// Resets the device for the last time, for a driver that has more to do then than to release its queues and is being
    /// dropped: if the device does not come back from this, it is not asked again.
    ///
    /// # Errors
    ///
    /// As for [`Self::reset`].
    pub fn end(&mut self) -> Result<Quiesced> {
        self.over = true;
        self.reset()
    }

    /// After [`Self::reset`]: releases all queues, for a driver to whom what was in flight means nothing.
    pub fn discard(&mut self, proof: &Quiesced) {
        discard(&mut self.session, proof);
    }

    /// Starts the device again after a reset and gives the session that is over.
    ///
    /// # Errors
    ///
    /// As for [`Self::new`]; the session that is over stays.
    pub fn restart(&mut self) -> Result<S> {
        let (negotiated, session) = self.control.change(|device| {
            let (negotiated, config, session) =
                start::<T, S>(&mut device.transport, &self.options)?;
            device.negotiated = negotiated;
            device.config = config;
            Ok::<_, Error>((negotiated, session))
        })?;
        self.negotiated = negotiated;
        Ok(core::mem::replace(&mut self.session, session))
    }
}

/// The session.
impl<T: Transport, S: Session<T>> Deref for Started<T, S> {
    type Target = S;

    #[inline(always)]
    fn deref(&self) -> &S {
        &self.session
    }
}

impl<T: Transport, S: Session<T>> DerefMut for Started<T, S> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut S {
        &mut self.session
    }
}

impl<T: Transport, S: Session<T>> Drop for Started<T, S> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut live = false;
        self.session
            .each_queue(&mut |queue| live |= queue.is_live());
        if !live {
            return;
        }
        // Else the queues' memory, which the device may still write to, would be leaked. That is what happens if the device
        // does not come back from the reset.
        match self.reset() {
            Ok(proof) => self.discard(&proof),
            Err(error) => log::error!("{error}"),
        }
    }
}

impl<T: Transport, S: Session<T>> fmt::Debug for Started<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Started({})", self.control.name())
    }
}

fn discard<T: Transport, S: Session<T>>(session: &mut S, proof: &Quiesced) {
    session.each_queue(&mut |queue| queue.discard(proof));
}

/// All steps of the specification's initialisation sequence.
fn start<T: Transport, S: Session<T>>(
    transport: &mut T,
    options: &S::Options,
) -> Result<(Negotiated, S::Config, S)> {
    let declined = S::declined(transport, options);
    let negotiated = negotiate(transport, S::UNDERSTOOD, S::REQUIRED, declined)?;
    // Step 7: what the device type wants to be set up, its queues above all.
    let made = S::configure(transport, options, negotiated).and_then(|config| {
        let session = S::make(transport, options, &config, negotiated)?;
        Ok((config, session))
    });
    let (config, mut session) = made.inspect_err(|_| give_up(transport))?;
    let mut enabled = Ok(());
    session.each_queue(&mut |queue| {
        if enabled.is_ok() {
            enabled = queue.enable(transport);
        }
    });
    if let Err(error) = enabled.and_then(|()| driver_ok(transport)) {
        // So that the memory of the queues that are enabled can be freed.
        let proof = transport.reset()?;
        discard(&mut session, &proof);
        give_up(transport);
        return Err(error);
    }
    session.begin();
    Ok((negotiated, config, session))
}

/// Steps 1 to 6 of the specification's initialisation sequence: reset the device and agree on features.
///
/// `understood` are the device type's own feature bits that the driver implements; the device-independent ones are added
/// here ([`SUPPORTED`]). `required` must be offered, and so must VERSION_1. `declined` are bits that the driver would
/// understand and does without this time.
///
/// On failure the device is left with FAILED set.
///
/// # Errors
///
/// The device does not come back from the reset ([`Cause::ResetTimeout`]), lacks a feature
/// ([`Cause::MissingFeatures`]) or refuses those accepted ([`Cause::FeaturesRefused`]).
pub fn negotiate<T: Transport>(
    transport: &mut T,
    understood: u64,
    required: u64,
    declined: u64,
) -> Result<Negotiated> {
    let result = try_negotiate(transport, understood, required, declined);
    if result.is_err() {
        give_up(transport);
    }
    result
}

fn try_negotiate<T: Transport>(
    transport: &mut T,
    understood: u64,
    required: u64,
    declined: u64,
) -> Result<Negotiated> {
    let fail = |transport: &T, cause| Err(Error::new(transport.name(), cause));

    // Step 1: reset the device. What it may still own from an earlier driver is not ours to free.
    transport.reset()?;

    // Steps 2 and 3: the guest has noticed the device, and knows how to drive it.
    transport.set_status(Status::ACKNOWLEDGE);
    transport.set_status(Status::ACKNOWLEDGE | Status::DRIVER);

    // Step 4: read what is offered, write what is understood. Nothing is accepted that is not implemented.
    let offered = transport.device_features();
    let required = required | RingFeatures::VERSION_1.bits();
    let missing = required & !offered;
    if missing != 0 {
        return fail(transport, Cause::MissingFeatures { offered, missing });
    }
    let accepted = offered & (understood | SUPPORTED.bits()) & !(declined & !required);
    transport.set_driver_features(accepted)?;

    // Step 5: no change of features after this.
    let features_ok = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK;
    transport.set_status(features_ok);

    // Step 6: read it back; a device that can't work with this subset has cleared it.
    if !transport.status().contains(Status::FEATURES_OK) {
        return fail(transport, Cause::FeaturesRefused { offered, accepted });
    }
    Ok(Negotiated { offered, accepted })
}

/// Step 8, after the driver set up its queues (step 7): the device may work now.
///
/// # Errors
///
/// [`Cause::NeedsReset`] if the device can't work after all; it is left with FAILED set.
pub fn driver_ok<T: Transport>(transport: &mut T) -> Result<()> {
    let ready = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK;
    transport.set_status(ready);
    if transport.status().contains(Status::DEVICE_NEEDS_RESET) {
        give_up(transport);
        return Err(Error::new(transport.name(), Cause::NeedsReset));
    }
    Ok(())
}

/// Tells the device that the driver gave up on it (spec 2.1, FAILED).
pub fn give_up<T: Transport>(transport: &mut T) {
    let status = transport.status();
    transport.set_status(status | Status::FAILED);
}
