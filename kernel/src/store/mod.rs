//! stub
pub mod log;
