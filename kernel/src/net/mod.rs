//! Networking.
//!
//! Each network device has a [`Stack`](stack::Stack) of its own: an interface, its addresses and its sockets. The task
//! that owns the device polls the stack when a frame came in, when a socket was used and when a timer of the protocols
//! is due; in between it sleeps. Sockets are futures. One more stack, `lo`, sends to itself: our own addresses are
//! reached through it.
//!
//! ```text
//!   http    iperf    echo, discard, chargen    fetch    ping     what is done with it
//!     \       \            |              /       /
//!      tcp, udp, connections               sockets as futures, many connections in one task
//!              |
//!            stack  <- addresses <- slaac  smoltcp, and where addresses come from
//!              |
//!   tasks: devices::net, lo                who polls the stack
//! ```
//!
//! Nothing in here touches hardware but `tasks.rs`: the rest is tested on the host, two stacks on a wire made of memory
//! (`tests.rs`).

mod addresses;
mod announce;
mod backlog;
pub mod chargen;
pub mod clock;
mod connections;
pub mod discard;
pub mod echo;
pub mod fetch;
pub mod http;
pub mod iperf;
pub mod loopback;
pub mod ping;
mod slaac;
pub mod stack;
pub mod target;
mod tasks;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod udp;

pub use addresses::{Ipv4Setup, Lease};
pub use tasks::{KernelClock, init, leased, loopback, stacks, web_stats};
