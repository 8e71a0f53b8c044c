//! One named test, and what is kept of it when it fails.
