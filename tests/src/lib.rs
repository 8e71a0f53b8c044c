//! Host side of the tests.
