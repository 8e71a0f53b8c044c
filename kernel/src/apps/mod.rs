//! What uses the drivers and is none itself: files, pictures, the dashboard, the store, the status page's data.

pub mod dashboard;
pub mod files;
mod json;
pub mod picture;
pub mod status;
pub mod store;
