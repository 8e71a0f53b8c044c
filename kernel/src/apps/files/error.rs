//! Why something could not be done to a file.

use alloc::string::{String, ToString};
use core::fmt;

use ext4_view::Ext4Error;
use hadris_fs::ErrorKind;

use super::medium::DeviceError;
use super::path::Path;

/// A failure: where, and why.
#[derive(Clone, Debug)]
pub struct Error {
    place: String,
    kind: ErrorKind,
    reason: String,
}

impl Error {
    /// A failure at this place.
    pub(super) fn new(place: &Path, fault: Fault) -> Self {
        Self {
            place: place.to_string(),
            kind: fault.kind,
            reason: fault.reason,
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// Why, whatever file system says it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(kind: ErrorKind, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        Self { kind, reason }
    }
}

impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind, words(kind))
    }
}

impl From<vringlet::Error> for Fault {
    fn from(error: vringlet::Error) -> Self {
        Self::new(ErrorKind::Io, error)
    }
}

/// FAT and partition tables.
impl From<DeviceError> for Fault {
    fn from(error: DeviceError) -> Self {
        match (error.device_error(), error.kind()) {
            (Some(device), _) => Self::from(**device),
            (None, kind @ (ErrorKind::Corrupt | ErrorKind::InvalidInput | ErrorKind::Io)) => {
                Self::new(kind, format_args!("{}: {error}", words(kind)))
            }
            (None, kind) => Self::from(kind),
        }
    }
}

impl From<Ext4Error> for Fault {
    fn from(error: Ext4Error) -> Self {
        let kind = match &error {
            Ext4Error::NotFound => ErrorKind::NotFound,
            Ext4Error::IsADirectory => ErrorKind::IsADirectory,
            Ext4Error::NotADirectory => ErrorKind::NotADirectory,
            Ext4Error::PathTooLong => ErrorKind::NameTooLong,
            Ext4Error::TooManySymlinks => ErrorKind::Symlink,
            Ext4Error::Io(device) => return Self::new(ErrorKind::Io, device),
            Ext4Error::Corrupt(what) => {
                let corrupt = ErrorKind::Corrupt;
                return Self::new(corrupt, format_args!("{}: {what}", words(corrupt)));
            }
            _ => return Self::new(ErrorKind::Unsupported, error),
        };
        Self::from(kind)
    }
}

/// The kind in words that a person knows.
fn words(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Io => "the device failed",
        ErrorKind::NotRecognized => "no file system that is known",
        ErrorKind::Corrupt => "the file system is corrupt",
        ErrorKind::NotFound => "no such file or directory",
        ErrorKind::AlreadyExists => "exists already",
        ErrorKind::NotADirectory => "is no directory",
        ErrorKind::IsADirectory => "is a directory",
        ErrorKind::DirectoryNotEmpty => "the directory is not empty",
        ErrorKind::NoSpace => "no space is left",
        ErrorKind::ReadOnly => "can only be read",
        ErrorKind::InvalidInput => "this can't be",
        ErrorKind::Unsupported => "the file system can't do this",
        ErrorKind::LimitExceeded => "more than can be",
        ErrorKind::NameTooLong => "the name is too long",
        ErrorKind::FileTooLarge => "a file can't be so large",
        ErrorKind::Symlink => "too many symbolic links",
        ErrorKind::InvalidHandle => "is gone",
        ErrorKind::Busy => "is in use",
        _ => "failed",
    }
}
