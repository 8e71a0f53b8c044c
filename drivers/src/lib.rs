//! Guest-side virtio drivers.
#![no_std]
