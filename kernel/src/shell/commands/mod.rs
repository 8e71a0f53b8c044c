//! The commands, one file per group.

pub(super) mod bench;
pub(super) mod blk;
pub(super) mod files;
pub(super) mod machine;
pub(super) mod net;
pub(super) mod pci;
#[cfg(feature = "peers")]
pub(super) mod peer;
pub(super) mod pmem;
pub(super) mod power;
pub(super) mod rng;
pub(super) mod screen;
pub(super) mod selftest;
pub(super) mod session;
pub(super) mod sound;
pub(super) mod store;
pub(super) mod virtio;
