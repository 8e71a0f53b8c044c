//! The dashboard: what a display shows unless it is asked for something else.
//!
//! ```text
//!   facts   what there is to tell, from the registry, the stacks, the memory and the journal
//!     |
//!   page    where it goes on a display of this size: a list of items
//!     |
//!   item    drawn: all of it, or what differs from the item drawn there before
//! ```
//!
//! Once a second each display's page is made anew and compared with what is on the screen; only what differs is drawn, and
//! only what was drawn is sent. On an idle guest nothing differs but, once a minute each, the clock and the uptime: that
//! is why no seconds are shown. A graph moves for a minute after the last byte. One picture per display is enough: each is sent before it
//! is drawn on again.
//!
//! Drawing is done in short pieces between which disks and networks have their turn. Without a display, and while
//! something else is shown, nothing ticks.

mod facts;
mod history;
mod item;
mod page;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::time::Duration;

use embassy_futures::select::select;
use embassy_futures::yield_now;
use embedded_graphics::geometry::Size;
use vringlet::Error;
use vringlet::gpu::Head;

use self::facts::{Facts, Observer};
use self::item::Item;
use crate::devices::gpu::{self, Adapter, Borrowed, Showing};
use crate::platform::time;
use crate::runtime::task;

/// How often the page is compared with the screen.
const PERIOD: Duration = Duration::from_secs(1);
/// A little less, since timers are not exact: what is one period for the rates.
const WHOLE_PERIOD_MICROS: u64 = 900_000;
/// How long is drawn before others have their turn.
const TURN: Duration = Duration::from_millis(1);

/// What is on the screen of a display.
struct Drawn {
    head: Head,
    items: Vec<Item>,
}

/// Starts showing the dashboard, on all adapters.
pub fn start() {
    for adapter in gpu::all() {
        task::spawn(show_on(adapter));
    }
}

async fn show_on(adapter: &'static Adapter) {
    let mut observer = Observer::new();
    let mut drawn = Vec::new();
    loop {
        match show(adapter, &mut observer, &mut drawn).await {
            Ok(true) => {
                select(time::after(PERIOD), adapter.rearranged.wait()).await;
            }
            Ok(false) => adapter.rearranged.wait().await,
            Err(error) => {
                // When the device was started again, the displays are arranged anew.
                log::warn!("{}: no dashboard: {error}", adapter.name);
                adapter.rearranged.wait().await;
            }
        }
    }
}

/// Brings all displays up to date. Says whether there is anything to keep up to date.
async fn show(
    adapter: &Adapter,
    observer: &mut Observer,
    drawn: &mut Vec<Drawn>,
) -> Result<bool, Error> {
    let mut desk = adapter.desk().await;
    let Showing::Dashboard { drawn: kept } = &mut desk.showing else {
        return Ok(false);
    };
    // If it fails on the way, all is drawn anew.
    let kept = core::mem::take(kept);
    let mut before = core::mem::take(drawn);
    if !kept {
        before.clear();
    }
    let layout = adapter.with(|gpu| gpu.layout().cloned());
    let layout = layout.unwrap_or_default();
    if layout.heads().is_empty() {
        return Ok(false);
    }
    let facts = observer.look(WHOLE_PERIOD_MICROS);
    let mut after = Vec::new();
    for head in layout.heads() {
        let same = |drawn: &Drawn| {
            drawn.head.scanout == head.scanout && drawn.head.rect.size() == head.rect.size()
        };
        let old = before.iter().position(same);
        let mut old = old.map_or(Vec::new(), |index| before.swap_remove(index).items);
        let items = loop {
            let items = draw(&mut desk, *head, core::mem::take(&mut old), &facts).await?;
            if desk.present(head.scanout).await? {
                break items;
            }
        };
        after.push(Drawn { head: *head, items });
    }
    *drawn = after;
    desk.showing = Showing::Dashboard { drawn: true };
    Ok(true)
}

/// Draws on a display what differs from what is there.
async fn draw(
    desk: &mut Borrowed<'_>,
    head: Head,
    old: Vec<Item>,
    facts: &Facts,
) -> Result<Vec<Item>, Error> {
    let size = desk.fit(head)?;
    let items = page::page(Size::new(size.width, size.height), facts);
    let mut turn = time::now();
    for (item, before) in item::changes(&items, &old) {
        let Ok(()) = item.draw(before, desk.canvas(head.scanout)?);
        if turn.elapsed() > TURN {
            yield_now().await;
            turn = time::now();
        }
    }
    Ok(items)
}
