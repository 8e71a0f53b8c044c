//! Where everything is on a page of a given size.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::Rectangle;
use log::Level;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight};

use super::facts::{DeviceFacts, Facts, InterfaceFacts};
use super::history::History;
use super::item::{Font, Graph, Item, Text};

const NIGHT: Rgb888 = Rgb888::new(0x0e, 0x12, 0x18);
const SURFACE: Rgb888 = Rgb888::new(0x17, 0x1d, 0x26);
const GROOVE: Rgb888 = Rgb888::new(0x2a, 0x33, 0x40);
const BRIGHT: Rgb888 = Rgb888::new(0xee, 0xf2, 0xf7);
const PLAIN: Rgb888 = Rgb888::new(0xb8, 0xc2, 0xcf);
const FAINT: Rgb888 = Rgb888::new(0x74, 0x80, 0x90);
const TEAL: Rgb888 = Rgb888::new(0x4e, 0xc9, 0xb0);
const BLUE: Rgb888 = Rgb888::new(0x6c, 0xa8, 0xf7);
const AMBER: Rgb888 = Rgb888::new(0xe5, 0xb4, 0x5a);
const RED: Rgb888 = Rgb888::new(0xf0, 0x71, 0x78);

/// The background is drawn in stripes of so many rows, so that each takes little time.
const STRIPE: u32 = 32;
/// The lowest edge of a graph, in bytes per second: less than that is not worth a mountain.
const MIN_SCALE: u64 = 4096;
/// More devices than this are counted and not listed.
const MAX_DEVICES: usize = 10;

/// The page of a display of this size.
pub(super) fn page(size: Size, facts: &Facts) -> Vec<Item> {
    let mut page = Page::new(size);
    page.background();
    page.header(facts);
    page.devices(facts);
    page.graphs(facts);
    page.bottom(facts);
    page.items
}

/// A page as it is laid out, from top to bottom.
struct Page {
    items: Vec<Item>,
    font: Font,
    title: Font,
    size: Size,
    /// Between things.
    gap: u32,
    /// Rows that are taken.
    top: u32,
}

/// A panel's inside: lines of text below its title.
struct Inside {
    left: u32,
    top: u32,
    width: u32,
    lines: u32,
}

impl Page {
    fn new(size: Size) -> Self {
        let (small, large) = match size.width {
            0..1200 => (RasterHeight::Size16, RasterHeight::Size24),
            1200..1800 => (RasterHeight::Size20, RasterHeight::Size32),
            _ => (RasterHeight::Size24, RasterHeight::Size32),
        };
        let font = Font {
            size: small,
            weight: FontWeight::Regular,
        };
        let title = Font {
            size: large,
            weight: FontWeight::Bold,
        };
        Self {
            items: Vec::new(),
            font,
            title,
            size,
            gap: font.height() * 5 / 8,
            top: 0,
        }
    }

    /// From one line of text to the next.
    fn line(&self) -> u32 {
        self.font.height() * 5 / 4
    }

    fn bold(&self) -> Font {
        Font {
            weight: FontWeight::Bold,
            ..self.font
        }
    }

    /// The width between the margins.
    fn width(&self) -> u32 {
        self.size.width.saturating_sub(2 * self.gap)
    }

    /// The rows left, but for the margin.
    fn left_over(&self) -> u32 {
        self.size.height.saturating_sub(self.top + self.gap)
    }

    fn background(&mut self) {
        for y in (0..self.size.height).step_by(STRIPE as usize) {
            let height = STRIPE.min(self.size.height - y);
            let stripe = area(0, y, self.size.width, height);
            self.items.push(Item::Fill(stripe, NIGHT));
        }
    }

    /// Text in as many columns as fit in `width` pixels.
    fn text(&mut self, (x, y): (u32, u32), width: u32, font: Font, paint: [Rgb888; 2], text: &str) {
        self.items.push(Item::Text(Text {
            at: point(x, y),
            columns: (width / font.width()) as usize,
            text: text.to_string(),
            font,
            color: paint[0],
            behind: paint[1],
        }));
    }

    /// As [`Self::text`], at the right end.
    fn right(&mut self, at: (u32, u32), width: u32, font: Font, paint: [Rgb888; 2], text: &str) {
        let columns = (width / font.width()) as usize;
        let at = (at.0 + width % font.width(), at.1);
        self.text(at, width, font, paint, &format!("{text:>columns$}"));
    }

    fn header(&mut self, facts: &Facts) {
        let title = self.title;
        let (left, top) = (self.gap + self.gap / 2, self.gap);
        let name_width = title.width() * 9;
        let below = top + title.height() - self.font.height() - self.font.height() / 8;
        let half = (self.width() - self.gap.min(self.width())) / 2;
        self.text((left, top), name_width, title, [BRIGHT, NIGHT], "Vringlet");
        let rest = half.saturating_sub(name_width);
        let uptime = match facts.minutes {
            0 => "just started".to_string(),
            minutes @ 1..60 => format!("up {minutes} min"),
            minutes => format!("up {} h {:02} min", minutes / 60, minutes % 60),
        };
        let clock = facts.clock.as_deref().unwrap_or_default();
        let version = format!("{}   {uptime}   {clock}", env!("CARGO_PKG_VERSION"));
        self.text(
            (left + name_width, below),
            rest,
            self.font,
            [FAINT, NIGHT],
            &version,
        );
        let address = facts.interfaces.iter().find_map(address);
        let (color, address) = match address {
            Some(address) => (TEAL, address),
            None if facts.interfaces.is_empty() => (FAINT, "no network".to_string()),
            None => (FAINT, "no address yet".to_string()),
        };
        let font = self.bold();
        self.right((left + half, below), half, font, [color, NIGHT], &address);
        self.top = top + title.height() + self.gap;
    }

    /// A panel with a title, and what is right of the title.
    fn panel(&mut self, x: u32, width: u32, height: u32, title: &str, note: &str) -> Inside {
        let pad = self.gap;
        self.items
            .push(Item::Panel(area(x, self.top, width, height), SURFACE));
        let (left, top) = (x + pad, self.top + pad * 3 / 4);
        let inner = width.saturating_sub(2 * pad);
        let (bold, font, line) = (self.bold(), self.font, self.line());
        let titled = bold.width() * (title.len() as u32 + 2);
        self.text(
            (left, top),
            titled.min(inner),
            bold,
            [BRIGHT, SURFACE],
            title,
        );
        let rest = inner.saturating_sub(titled);
        self.right(
            (left + inner - rest, top),
            rest,
            font,
            [FAINT, SURFACE],
            note,
        );
        let top = top + line + line / 8;
        Inside {
            left,
            top,
            width: inner,
            lines: (self.top + height).saturating_sub(top + pad / 2) / line,
        }
    }

    /// The height of a panel with so many lines.
    fn panel_height(&self, lines: u32) -> u32 {
        let line = self.line();
        self.gap * 3 / 4 + line + line / 8 + lines * line + self.gap / 2
    }

    fn devices(&mut self, facts: &Facts) {
        let listed = facts.devices.len().min(MAX_DEVICES);
        let height = self.panel_height(listed as u32 + 1);
        if height > self.left_over() {
            return;
        }
        let note = match facts.devices.len() {
            0 => "none found".to_string(),
            1 => "1 device".to_string(),
            all if all > listed => format!("{all} devices, {listed} shown"),
            all => format!("{all} devices"),
        };
        let inside = self.panel(self.gap, self.width(), height, "Devices", &note);
        // What it is gets what the numbers leave.
        let columns = (inside.width / self.font.width()) as usize;
        let numbers = 8 + 4 * 10 + 10;
        let what = columns.saturating_sub(7 + numbers);
        let row = |cells: [&str; 8]| {
            let [name, is, mode, requests, kicks, interrupts, from, to] = cells;
            let is: String = is.chars().take(what.saturating_sub(2)).collect();
            format!(
                "{name:<7}{is:<what$}{mode:<7}{requests:>9}{kicks:>9}{interrupts:>11}{from:>11}{to:>11}"
            )
        };
        let (font, line) = (self.font, self.line());
        let head = row(["", "", "", "requests", "kicks", "interrupts", "in", "out"]);
        self.text(
            (inside.left, inside.top),
            inside.width,
            font,
            [FAINT, SURFACE],
            &head,
        );
        for (index, device) in facts.devices.iter().take(listed).enumerate() {
            let y = inside.top + (index as u32 + 1) * line;
            let (color, text) = device_row(device, &row);
            // The name stands out, and the rest does not move.
            let name: String = text.chars().take(7).collect();
            let rest: String = text.chars().skip(7).collect();
            let named = 7 * font.width();
            let bold = self.bold();
            let strong = if device.failed { FAINT } else { BLUE };
            self.text(
                (inside.left, y),
                named.min(inside.width),
                bold,
                [strong, SURFACE],
                &name,
            );
            let width = inside.width.saturating_sub(named);
            self.text(
                (inside.left + named, y),
                width,
                font,
                [color, SURFACE],
                &rest,
            );
        }
        self.top += height + self.gap;
    }

    fn graphs(&mut self, facts: &Facts) {
        // A third of what is left, in lines.
        let lines = (self.left_over() * 2 / 5 / self.line()).min(14);
        let height = self.panel_height(lines);
        if lines < 3 {
            return;
        }
        let width = (self.width() - self.gap.min(self.width())) / 2;
        let right = self.gap + width + self.gap;
        self.graph(
            self.gap,
            width,
            height,
            "Disks",
            ["read", "written"],
            &facts.disk,
        );
        let words = ["received", "sent"];
        let rest = self.width() + self.gap - right.min(self.width() + self.gap);
        self.graph(right, rest, height, "Network", words, &facts.network);
        self.top += height + self.gap;
    }

    fn graph(
        &mut self,
        x: u32,
        width: u32,
        height: u32,
        title: &str,
        words: [&str; 2],
        history: &History,
    ) {
        let peak = match history.peak() {
            0 => "quiet for a minute".to_string(),
            peak => format!("peak {}/s", bytes(peak)),
        };
        let inside = self.panel(x, width, height, title, &peak);
        let line = self.line();
        let plot = area(
            inside.left,
            inside.top,
            inside.width,
            ((inside.lines.max(1) - 1) * line).saturating_sub(line / 4),
        );
        self.items.push(Item::Graph(Graph {
            area: plot,
            rates: history.rates().to_vec(),
            scale: scale(history.peak()),
            colors: [TEAL, BLUE],
            paper: [GROOVE, SURFACE],
        }));
        let y = inside.top + (inside.lines.max(1) - 1) * line;
        let half = inside.width / 2;
        for (index, (word, color)) in words.into_iter().zip([TEAL, BLUE]).enumerate() {
            let rate = history.newest()[index.min(1)];
            let text = format!("{word} {}/s", bytes(rate));
            let at = (inside.left + index as u32 * half, y);
            self.text(at, half, self.font, [color, SURFACE], &text);
        }
    }

    /// The log, and the machine beside it where there is room.
    fn bottom(&mut self, facts: &Facts) {
        let height = self.left_over();
        if height < self.panel_height(2) {
            return;
        }
        let whole = self.width();
        let machine = match self.font.width() * 42 {
            width if width * 5 / 2 < whole => width,
            _ => 0,
        };
        let log = match machine {
            0 => whole,
            machine => whole - machine - self.gap,
        };
        self.log(facts, log, height);
        if machine > 0 {
            self.machine(facts, self.gap + log + self.gap, machine, height);
        }
    }

    fn log(&mut self, facts: &Facts, width: u32, height: u32) {
        let inside = self.panel(self.gap, width, height, "Log", "");
        let (font, line) = (self.font, self.line());
        let skipped = facts.log.len().saturating_sub(inside.lines as usize);
        let mut lines = facts.log.iter().skip(skipped);
        let timed = 10 * font.width();
        let rest = inside.width.saturating_sub(timed);
        for index in 0..inside.lines {
            let y = inside.top + index * line;
            let (time, color, text) = match lines.next() {
                Some(line) => {
                    let (seconds, millis) = (line.micros / 1_000_000, line.micros / 1000 % 1000);
                    let color = match line.level {
                        Level::Error => RED,
                        Level::Warn => AMBER,
                        Level::Info => PLAIN,
                        Level::Debug | Level::Trace => FAINT,
                    };
                    (
                        format!("{seconds:4}.{millis:03}"),
                        color,
                        line.text.as_str(),
                    )
                }
                None => (String::new(), PLAIN, ""),
            };
            self.text(
                (inside.left, y),
                timed.min(inside.width),
                font,
                [FAINT, SURFACE],
                &time,
            );
            self.text((inside.left + timed, y), rest, font, [color, SURFACE], text);
        }
    }

    fn machine(&mut self, facts: &Facts, x: u32, width: u32, height: u32) {
        let inside = self.panel(x, width, height, "Machine", "");
        let (font, line) = (self.font, self.line());
        let mut row = 0;
        for (name, [used, all]) in [("memory", facts.memory), ("heap", facts.heap)] {
            if row + 2 > inside.lines {
                return;
            }
            let y = inside.top + row * line;
            let third = inside.width / 3;
            let said = format!("{} of {}", bytes(used), bytes(all));
            self.text((inside.left, y), third, font, [FAINT, SURFACE], name);
            let rest = inside.width - third;
            self.right(
                (inside.left + third, y),
                rest,
                font,
                [PLAIN, SURFACE],
                &said,
            );
            let bar = area(
                inside.left,
                y + line + line / 8,
                inside.width,
                (line / 4).max(1),
            );
            self.items.push(Item::Gauge {
                area: bar,
                thousandths: thousandths(used, all),
                colors: [TEAL, GROOVE],
            });
            row += 2;
        }
        let (processor, count) = &facts.processor;
        let boot = facts.boot_micros;
        let mut rows = alloc::vec![
            ("processor", processor.clone()),
            ("processors", count.to_string()),
            (
                "boot",
                format!("{}.{:03} s", boot / 1_000_000, boot / 1000 % 1000)
            ),
        ];
        for interface in &facts.interfaces {
            let link = if interface.link {
                "link up"
            } else {
                "link down"
            };
            rows.push((interface.name.as_str(), link.to_string()));
            rows.extend(
                interface
                    .addresses
                    .iter()
                    .map(|address| ("", address.clone())),
            );
            let gateways = interface.gateways.iter();
            rows.extend(gateways.map(|gateway| ("gateway", gateway.clone())));
        }
        let named = 11 * font.width();
        let rest = inside.width.saturating_sub(named);
        // As many as there are lines, so that the page stays as it is when an address comes.
        for index in 0..inside.lines.saturating_sub(row) {
            let y = inside.top + (row + index) * line;
            let none = ("", String::new());
            let (name, said) = rows.get(index as usize).unwrap_or(&none);
            self.text(
                (inside.left, y),
                named.min(inside.width),
                font,
                [FAINT, SURFACE],
                name,
            );
            self.right((inside.left + named, y), rest, font, [PLAIN, SURFACE], said);
        }
    }
}

/// A device's row and its color.
fn device_row(device: &DeviceFacts, row: &impl Fn([&str; 8]) -> String) -> (Rgb888, String) {
    let DeviceFacts {
        name,
        summary,
        mode,
        work,
        failed,
    } = device;
    let numbers = work.map(|work| {
        let moved = work.bytes.map(|moved| moved.map(bytes));
        (
            [work.requests, work.kicks, work.interrupts].map(grouped),
            moved.unwrap_or_default(),
        )
    });
    let ([requests, kicks, interrupts], [from, to]) = numbers.unwrap_or_default();
    let text = row([
        name,
        summary,
        mode,
        &requests,
        &kicks,
        &interrupts,
        &from,
        &to,
    ]);
    (if *failed { FAINT } else { PLAIN }, text)
}

/// The first IPv4 address, or else the first at all.
fn address(interface: &InterfaceFacts) -> Option<String> {
    let mut all = interface.addresses.iter();
    let best = all.clone().find(|address| address.contains('.'));
    best.or_else(|| all.next()).cloned()
}

fn area(x: u32, y: u32, width: u32, height: u32) -> Rectangle {
    Rectangle::new(point(x, y), Size::new(width, height))
}

fn point(x: u32, y: u32) -> Point {
    // Sizes of displays are far below 2^31.
    Point::new(x as i32, y as i32)
}

/// What the edges of a graph stand for: a power of two that the peak does not exceed.
fn scale(peak: u64) -> u64 {
    peak.checked_next_power_of_two()
        .unwrap_or(u64::MAX)
        .max(MIN_SCALE)
}

fn thousandths(used: u64, all: u64) -> u32 {
    let share = u128::from(used.min(all)) * 1000 / u128::from(all.max(1));
    u32::try_from(share).unwrap_or(1000)
}

/// A number of bytes in four or five characters and a unit.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = "B";
    for larger in UNITS {
        if tenths < 10240 {
            break;
        }
        tenths /= 1024;
        unit = larger;
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ if tenths >= 1000 => format!("{} {unit}", tenths / 10),
        _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
