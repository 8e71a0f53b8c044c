//! The one way that every driver initialises its device (spec 3.1.1).

use crate::dma::DmaContext;
use crate::error::{Cause, Error, Result};
use crate::features::{Negotiated, RingFeatures, SUPPORTED};
use crate::transport::{Status, Transport};

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
    transport.set_driver_features(accepted);

    // Step 5: no change of features after this.
    let features_ok = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK;
    transport.set_status(features_ok);

    // Step 6: read it back; a device that can't work with this subset has cleared it.
    if !transport.status().contains(Status::FEATURES_OK) {
        return fail(transport, Cause::FeaturesRefused { offered, accepted });
    }
    let access_platform = accepted & RingFeatures::ACCESS_PLATFORM.bits() != 0;
    let name = transport.name();
    let agreed = transport.dma_mut().negotiated(name, access_platform);
    agreed.map_err(|cause| Error::new(name, cause))?;
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
