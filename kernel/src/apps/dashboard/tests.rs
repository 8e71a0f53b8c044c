//! Pages on displays made of memory.

use core::convert::Infallible;
use std::vec;

use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use log::Level;

use super::facts::{DeviceFacts, Facts, InterfaceFacts, Work};
use super::history::History;
use super::item::{Item, changes};
use super::page::page;
use crate::platform::journal::Line;

/// A display made of memory, which counts the pixels drawn and those drawn outside.
struct Display {
    size: Size,
    pixels: vec::Vec<Option<Rgb888>>,
    drawn: usize,
    outside: usize,
}

impl Display {
    fn new(size: Size) -> Self {
        Self {
            size,
            pixels: vec![None; (size.width * size.height) as usize],
            drawn: 0,
            outside: 0,
        }
    }

    fn show(&mut self, items: &[Item], old: &[Item]) {
        self.drawn = 0;
        for (item, before) in changes(items, old) {
            let Ok(()) = item.draw(before, self);
        }
    }
}

impl OriginDimensions for Display {
    fn size(&self) -> Size {
        self.size
    }
}

impl DrawTarget for Display {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(at, color) in pixels {
            if self.bounding_box().contains(at) {
                let index = at.y as usize * self.size.width as usize + at.x as usize;
                self.pixels[index] = Some(color);
                self.drawn += 1;
            } else {
                self.outside += 1;
            }
        }
        Ok(())
    }
}

fn facts() -> Facts {
    let device = |name: &str, work| DeviceFacts {
        name: name.into(),
        summary: "64 MiB, 512-byte blocks".into(),
        mode: "msix".into(),
        work,
        failed: false,
    };
    let work = Work {
        requests: 12,
        kicks: 3,
        interrupts: 4,
        bytes: Some([4096, 0]),
    };
    Facts {
        minutes: 0,
        clock: Some("2026-11-26 12:04 UTC".into()),
        processor: ("a processor".into(), 1),
        boot_micros: 123_456,
        memory: [1 << 20, 1 << 28],
        heap: [1 << 20, 1 << 24],
        devices: vec![device("blk0", Some(work)), device("gpu0", None)],
        interfaces: vec![InterfaceFacts {
            name: "net0".into(),
            link: true,
            addresses: vec![],
            gateways: vec![],
        }],
        disk: History::new(),
        network: History::new(),
        log: vec![],
    }
}

#[test]
fn what_did_not_change_is_not_drawn() {
    let facts = facts();
    let size = Size::new(1024, 768);
    let mut display = Display::new(size);
    let items = page(size, &facts);
    display.show(&items, &[]);
    assert!(display.drawn >= 1024 * 768);
    display.show(&page(size, &facts), &items);
    assert_eq!(display.drawn, 0);
}

#[test]
fn every_display_is_filled_and_nothing_is_drawn_beside_it() {
    let facts = facts();
    for (width, height) in [
        (640, 480),
        (800, 600),
        (1280, 800),
        (1920, 1080),
        (1079, 1918),
    ] {
        let mut display = Display::new(Size::new(width, height));
        display.show(&page(display.size, &facts), &[]);
        assert_eq!(display.outside, 0, "{width}x{height}");
        assert!(
            display.pixels.iter().all(Option::is_some),
            "{width}x{height}"
        );
    }
    // There may be no room for anything, and that is all.
    for (width, height) in [(1, 1), (16, 16), (50, 2000), (2000, 50), (300, 200)] {
        let mut display = Display::new(Size::new(width, height));
        display.show(&page(display.size, &facts), &[]);
        assert!(
            display.pixels.iter().all(Option::is_some),
            "{width}x{height}"
        );
    }
}

/// Whatever changes, the screen is as if it had been drawn from the beginning, by less work.
#[test]
fn changes_leave_what_a_new_drawing_leaves() {
    let size = Size::new(1280, 800);
    let mut facts = facts();
    let mut display = Display::new(size);
    let mut items = page(size, &facts);
    display.show(&items, &[]);
    let mut totals = [0u64, 0];
    for step in 0..20u64 {
        match step % 5 {
            0 => facts.minutes += 37,
            1 => {
                totals = [
                    totals[0] + step * step * 1000,
                    totals[1] + (step % 7) * 5000,
                ];
                facts.disk.note(totals, 1_000_000);
                facts.network.note([totals[1], totals[0]], 1_000_000);
            }
            2 => facts.log.push(Line {
                micros: step * 1_000_000,
                level: if step % 2 == 0 {
                    Level::Warn
                } else {
                    Level::Info
                },
                text: heapless::String::try_from("something happened").unwrap(),
            }),
            3 => {
                facts.interfaces[0].addresses = vec![std::format!("10.0.2.{step}/24")];
                facts.memory[0] += 1 << 21;
            }
            _ => {
                if let Some(work) = &mut facts.devices[0].work {
                    work.requests += step * 100;
                    work.bytes = Some([step << 12, step << 20]);
                }
            }
        }
        let new = page(size, &facts);
        display.show(&new, &items);
        assert!(
            display.drawn < 1280 * 800 / 2,
            "{} in step {step}",
            display.drawn
        );
        let mut anew = Display::new(size);
        anew.show(&new, &[]);
        assert!(anew.pixels == display.pixels, "step {step}");
        items = new;
    }
}
