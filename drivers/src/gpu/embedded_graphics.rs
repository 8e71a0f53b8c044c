//! A [`Framebuffer`] as `embedded_graphics_core::DrawTarget`: text and shapes by the embedded-graphics family.

use core::convert::Infallible;

use embedded_graphics_core::Pixel;
use embedded_graphics_core::draw_target::DrawTarget;
use embedded_graphics_core::geometry::{OriginDimensions, Point, Size};
use embedded_graphics_core::pixelcolor::{IntoStorage, Rgb888};
use embedded_graphics_core::primitives::Rectangle;

use super::damage::Rect;
use super::framebuffer::Framebuffer;
use crate::dma::DmaContext;

impl<D: DmaContext> OriginDimensions for Framebuffer<D> {
    fn size(&self) -> Size {
        let size = Framebuffer::size(self);
        Size::new(size.width, size.height)
    }
}

/// A point inside a framebuffer of any size, if it may be one.
fn place(point: Point) -> Option<(u32, u32)> {
    let x = u32::try_from(point.x).ok()?;
    let y = u32::try_from(point.y).ok()?;
    Some((x, y))
}

/// The part of an area that has no negative coordinates.
fn visible(area: &Rectangle) -> Rect {
    let end = |start: i32, len: u32| (i64::from(start) + i64::from(len)).max(0) as u64;
    let right = end(area.top_left.x, area.size.width).min(u32::MAX.into()) as u32;
    let bottom = end(area.top_left.y, area.size.height).min(u32::MAX.into()) as u32;
    let x = area.top_left.x.max(0) as u32;
    let y = area.top_left.y.max(0) as u32;
    Rect::new(x, y, right.saturating_sub(x), bottom.saturating_sub(y))
}

impl<D: DmaContext> DrawTarget for Framebuffer<D> {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        // One drawing is one damage: noting each pixel would cost more than drawing it.
        let mut drawn = Rect::default();
        for Pixel(point, color) in pixels {
            if let Some((x, y)) = place(point)
                && self.set_unnoted(x, y, color.into_storage())
            {
                drawn = drawn.union(Rect::new(x, y, 1, 1));
            }
        }
        self.damage_mut().add(drawn);
        Ok(())
    }

    fn fill_solid(&mut self, area: &Rectangle, color: Rgb888) -> Result<(), Infallible> {
        self.fill(visible(area), color.into_storage());
        Ok(())
    }
}
