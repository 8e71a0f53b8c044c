//! The host side: starts the guest under QEMU and judges it from outside.
//!
//! The guest's word is not enough. Disk images are compared byte for byte, frames are read back from pcap files, pages
//! are fetched over the network, the exit status is checked, and QEMU's own log of guest errors must be empty.
//!
//! | module         | what it knows                                                            |
//! |----------------|--------------------------------------------------------------------------|
//! | [`accelerator`] | what executes the guest's instructions: KVM, or QEMU's emulation        |
//! | [`qemu`]       | the QEMU command line: the one place that knows how the guest is started |
//! | [`guest`]      | a running guest: its console, its end, what the end means                |
//! | [`console`]    | the serial port: captured with times, waited for with a bound            |
//! | [`terminal`]   | what a person at the serial port sees                                    |
//! | [`qmp`]        | QEMU's control socket: commands and events                               |
//! | [`gdb`]        | QEMU's debugger socket, as far as spoiling a register needs              |
//! | [`disk`]       | the test pattern, disk images and what they must contain                 |
//! | [`images`]     | file systems in images, made and checked by the host's own tools         |
//! | [`net`]        | the host's end of the wire: curl, echo clients, pcap files, raw frames   |
//! | [`screen`]     | what the guest shows, and windows that are resized                       |
//! | [`pictures`]   | pictures as files: PNG of all kinds, and BMP                             |
//! | [`sound`]      | what a card plays and records: the guest's tone, files                   |
//! | [`wav`]        | sound as files                                                           |
//! | [`vhost_user`] | devices in processes of their own                                        |
//! | [`demo`]       | the disk that `make run` brings along                                    |
//! | [`cell`]       | one named test and what is kept of it when it fails                      |
//!
//! `vringlet-run` (`make run`) starts the guest through the same modules.

pub mod accelerator;
pub mod cell;
pub mod console;
pub mod demo;
pub mod disk;
pub mod gdb;
pub mod guest;
pub mod images;
pub mod net;
pub mod pictures;
pub mod qemu;
pub mod qmp;
pub mod screen;
pub mod sound;
pub mod terminal;
pub mod vhost_user;
pub mod wav;

use std::path::PathBuf;

/// An environment variable that says something.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.trim().is_empty())
}

/// The top of the source tree.
pub fn project_root() -> PathBuf {
    // Cargo and nextest set the variable when they run a program; the tree may have moved since it was built.
    let tests = std::env::var("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_string());
    PathBuf::from(tests)
        .join("..")
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from("."))
}
