//! Paths: `/VOLUME/directory/file`, or relative to the working directory. `.` and `..` are taken by what is written, not
//! by where links lead.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// A place among all files: the top, where the volumes are, or somewhere on a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    parts: Vec<String>,
}

impl Path {
    /// What `text` means in the directory `self`.
    pub fn join(&self, text: &str) -> Self {
        let mut parts = match text.starts_with('/') {
            true => Vec::new(),
            false => self.parts.clone(),
        };
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part.to_string()),
            }
        }
        Self { parts }
    }

    /// The name of the volume; `None` at the top.
    pub fn volume(&self) -> Option<&str> {
        self.parts.first().map(String::as_str)
    }

    /// The place on the volume: `/` or `/directory/file`.
    pub fn on_volume(&self) -> String {
        let parts = self.parts.get(1..).unwrap_or_default();
        format!("/{}", parts.join("/"))
    }

    /// The last name; `None` at the top.
    pub fn name(&self) -> Option<&str> {
        self.parts.last().map(String::as_str)
    }

    /// Whether this is a volume's own directory, or the top.
    pub fn is_root(&self) -> bool {
        self.parts.len() <= 1
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return f.write_str("/");
        }
        for part in &self.parts {
            write!(f, "/{}", Shown(part))?;
        }
        Ok(())
    }
}

/// A name as a terminal may show it: what would move its cursor is replaced.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            let shown = match character.is_control() {
                true => char::REPLACEMENT_CHARACTER,
                false => character,
            };
            write!(f, "{shown}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_is_written() {
        let top = Path::default();
        assert_eq!(top.to_string(), "/");
        assert_eq!((top.volume(), top.name()), (None, None));
        let music = top.join("/blk0/music");
        assert_eq!(music.to_string(), "/blk0/music");
        for (text, expected) in [
            ("a.wav", "/blk0/music/a.wav"),
            ("./x/../a.wav", "/blk0/music/a.wav"),
            ("..", "/blk0"),
            ("../../../..", "/"),
            ("/pmem0//b/", "/pmem0/b"),
            ("", "/blk0/music"),
            ("two words", "/blk0/music/two words"),
        ] {
            assert_eq!(music.join(text).to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_path_knows_its_volume_and_its_place_there() {
        let path = Path::default().join("/blk0p1/a/b");
        assert_eq!(path.volume(), Some("blk0p1"));
        assert_eq!(path.on_volume(), "/a/b");
        assert_eq!(path.name(), Some("b"));
        assert!(!path.is_root());
        let root = path.join("/blk0p1");
        assert_eq!(root.on_volume(), "/");
        assert!(root.is_root());
    }

    #[test]
    fn control_characters_in_names_are_not_shown() {
        assert_eq!(Shown("a\u{1b}[2Jä\n").to_string(), "a\u{fffd}[2Jä\u{fffd}");
    }
}
