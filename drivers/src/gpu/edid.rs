//! [`Edid`]: what a monitor says about itself, read by the crate `piaf`.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;

use piaf::{
    EdidError, RefreshRate, ScreenSize, StaticDisplayCapabilities, StaticExtensionHandler,
    capabilities_from_edid_static, parse_edid,
};

use super::damage::Size;

/// What a monitor says about itself. Whatever it left out is `None`.
#[derive(Clone, PartialEq)]
pub struct Edid {
    /// Three letters that stand for its maker.
    pub manufacturer: Option<String>,
    /// The maker's number of the product.
    pub product: Option<u16>,
    /// The serial number, where it is a number.
    pub serial: Option<u32>,
    /// The product's name.
    pub name: Option<String>,
    /// How large the picture should be, in pixels.
    pub preferred: Option<Size>,
    /// How often a second that picture should be shown, in thousandths.
    pub refresh_millihertz: Option<u32>,
    /// How large the monitor is: width and height in millimetres.
    pub millimetres: Option<(u32, u32)>,
    /// As the monitor gave it, for those who want to know more.
    pub bytes: Box<[u8]>,
}

/// Modes kept while parsing; what is given in [`Edid`] does not depend on it.
const MODES: usize = 1;

/// Readers of extension blocks. They would only add modes, and are 17 KB of code.
const EXTENSIONS: &[&dyn StaticExtensionHandler] = &[];

impl Edid {
    /// Reads `bytes`, as VESA specifies them: blocks of 128 bytes.
    ///
    /// # Errors
    ///
    /// Too short, a wrong header or check sum, another version than 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, EdidError> {
        let parsed = parse_edid(bytes, EXTENSIONS)?;
        let about: StaticDisplayCapabilities<MODES> =
            capabilities_from_edid_static(&parsed, EXTENSIONS);
        let text = |text: &dyn fmt::Display| text.to_string().trim().to_string();
        let centimetres = match about.screen_size {
            Some(ScreenSize::Physical {
                width_cm,
                height_cm,
            }) => Some((u32::from(width_cm) * 10, u32::from(height_cm) * 10)),
            _ => None,
        };
        let exact = about.preferred_image_size_mm;
        let exact = exact.map(|(width, height)| (u32::from(width), u32::from(height)));
        let preferred = about.preferred_timing.as_ref();
        Ok(Self {
            manufacturer: about.manufacturer.map(|maker| text(&maker)),
            product: about.product_code,
            serial: about.serial_number,
            name: about.display_name.map(|name| text(&name)),
            preferred: preferred.map(|mode| Size::new(mode.width.into(), mode.height.into())),
            refresh_millihertz: preferred
                .and_then(|mode| mode.refresh_rate)
                .and_then(millihertz),
            millimetres: exact.or(centimetres),
            bytes: bytes.into(),
        })
    }
}

fn millihertz(rate: RefreshRate) -> Option<u32> {
    let thousandths = u64::from(rate.numer()) * 1000;
    u32::try_from(thousandths.checked_div(rate.denom().into())?).ok()
}

impl fmt::Debug for Edid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edid")
            .field("manufacturer", &self.manufacturer)
            .field("name", &self.name)
            .field("preferred", &self.preferred)
            .finish_non_exhaustive()
    }
}
