//! The virtio devices: found, named (blk0, net0, ...), and kept where the shell can show them.

/// Finds the devices and brings up those there is a driver for.
pub async fn init() {}
