//! The host's end of the wire.

pub mod capture;
pub mod clients;
pub mod namespace;
pub mod peer;

/// What every cell with a user-mode network forwards to the guest: the web page and the echo services.
pub const FORWARDS: &[crate::qemu::Forward] = &[
    crate::qemu::Forward {
        protocol: "tcp",
        host: 0,
        guest: WEB,
    },
    crate::qemu::Forward {
        protocol: "tcp",
        host: 0,
        guest: ECHO,
    },
    crate::qemu::Forward {
        protocol: "udp",
        host: 0,
        guest: ECHO,
    },
];

/// The guest's port for its web page.
pub const WEB: u16 = 80;

/// The guest's port for TCP and UDP echo.
pub const ECHO: u16 = 7;
