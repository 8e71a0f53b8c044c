//! JSON, written straight into one string.
//!
//! The status page is asked for again and again, and most of its bytes are keys that never change. serde_json looks at each
//! of them, and wants the rest in values of its own first: four fifths of what a page cost. It still escapes what needs it.

use alloc::string::String;
use core::fmt::{self, Write};

/// A text in the making. A comma follows each value; closing takes the last one away.
pub(super) struct Json(String);

/// Writes a key that needs no escaping.
macro_rules! key {
    ($json:expr, $name:literal) => {
        $json.raw(concat!("\"", $name, "\":"))
    };
}
pub(super) use key;

impl Json {
    /// The text of an object that `f` fills. It is likely to have so many bytes.
    pub(super) fn of_object(bytes: usize, f: impl FnOnce(&mut Self)) -> String {
        let mut json = Self(String::with_capacity(bytes));
        json.object(f);
        json.0.pop();
        json.0
    }

    /// What is JSON already, without a comma.
    pub(super) fn raw(&mut self, json: &str) -> &mut Self {
        self.0.push_str(json);
        self
    }

    /// A key that is a name.
    pub(super) fn key(&mut self, name: &'static str) -> &mut Self {
        self.raw("\"").raw(name).raw("\":")
    }

    pub(super) fn object(&mut self, f: impl FnOnce(&mut Self)) {
        self.raw("{");
        f(self);
        self.close("},");
    }

    pub(super) fn array(&mut self, f: impl FnOnce(&mut Self)) {
        self.raw("[");
        f(self);
        self.close("],");
    }

    fn close(&mut self, end: &str) {
        if self.0.ends_with(',') {
            self.0.pop();
        }
        self.raw(end);
    }

    pub(super) fn number(&mut self, number: u64) {
        let mut digits = itoa::Buffer::new();
        self.raw(digits.format(number)).raw(",");
    }

    /// A port on all addresses.
    pub(super) fn port(&mut self, port: u16) {
        let mut digits = itoa::Buffer::new();
        self.raw("\"*:").raw(digits.format(port)).raw("\",");
    }

    pub(super) fn boolean(&mut self, value: bool) {
        self.raw(if value { "true," } else { "false," });
    }

    pub(super) fn null(&mut self) {
        self.raw("null,");
    }

    /// A text that needs no escaping, as no name in the program does.
    pub(super) fn name(&mut self, name: &'static str) {
        self.raw("\"").raw(name).raw("\",");
    }

    pub(super) fn text(&mut self, text: &str) {
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(is_plain) {
            self.raw("\"").raw(text).raw("\",");
            return;
        }
        // No text is too strange for it.
        let escaped = serde_json::to_string(text).unwrap_or_default();
        self.raw(&escaped).raw(",");
    }

    /// What is shown as letters, digits and simple signs: addresses, states, places.
    pub(super) fn display(&mut self, value: impl fmt::Display) {
        self.raw("\"");
        // A string takes everything.
        let _ = write!(self.0, "{value}");
        self.raw("\",");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_reads_what_is_written() {
        let text = Json::of_object(0, |json| {
            key!(json, "empty").object(|_| ());
            key!(json, "none").array(|_| ());
            key!(json, "numbers").array(|json| {
                json.number(0);
                json.number(u64::MAX);
            });
            json.key("strange").text("a \"b\" \\ c\n\u{7}\u{e9}");
            json.key("name").name("blk0");
            json.key("plain").display(format_args!("{}-{}", 1, "x"));
            key!(json, "inner").object(|json| {
                key!(json, "yes").boolean(true);
                key!(json, "nothing").null();
            });
        });
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let wanted = serde_json::json!({
            "empty": {},
            "none": [],
            "numbers": [0, u64::MAX],
            "strange": "a \"b\" \\ c\n\u{7}\u{e9}",
            "name": "blk0",
            "plain": "1-x",
            "inner": { "yes": true, "nothing": null },
        });
        assert_eq!(read, wanted);
        assert_eq!(Json::of_object(0, |_| ()), "{}");
    }
}
