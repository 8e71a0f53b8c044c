//! PCI.

/// Finds what is there.
pub fn init() {}
