//! The commands, one file per group.

pub(super) mod machine;
pub(super) mod pci;
pub(super) mod power;
pub(super) mod session;
