//! Who runs when: tasks, and fibers for code that waits in the middle of a call.

pub mod fiber;
pub mod task;
