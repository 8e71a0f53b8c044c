//! What a page is made of, and how it gets onto a screen: anew, or as little of it as changed.

use alloc::string::String;
use alloc::vec::Vec;
use core::iter::repeat_n;

use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{PrimitiveStyle, Rectangle, RoundedRectangle, StyledDrawable};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::history::{Rate, SECONDS};

/// A piece of a page.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// A rectangle of one color.
    Fill(Rectangle, Rgb888),
    /// A rectangle with round corners.
    Panel(Rectangle, Rgb888),
    /// A line of text.
    Text(Text),
    /// A graph of two rates, one upwards and one downwards.
    Graph(Graph),
    /// How much of something is used, in thousandths.
    Gauge {
        /// Where.
        area: Rectangle,
        /// How much.
        thousandths: u32,
        /// Of what is used, and of the rest.
        colors: [Rgb888; 2],
    },
}

/// A line of text in a field of a fixed number of characters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Text {
    /// Its top left corner.
    pub at: Point,
    /// How many characters fit in the field: longer text is cut.
    pub columns: usize,
    /// What it says.
    pub text: String,
    /// Size and weight of the font.
    pub font: Font,
    /// The color of the characters.
    pub color: Rgb888,
    /// The color behind them.
    pub behind: Rgb888,
}

/// A graph of the last minute.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Graph {
    /// Where.
    pub area: Rectangle,
    /// The rates, the newest last.
    pub rates: Vec<Rate>,
    /// The rate that reaches the edge.
    pub scale: u64,
    /// Of the two directions.
    pub colors: [Rgb888; 2],
    /// Of the line between them, and of what is behind.
    pub paper: [Rgb888; 2],
}

/// A font of fixed width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Font {
    /// The height of a line.
    pub size: RasterHeight,
    /// How heavy it is.
    pub weight: FontWeight,
}

impl PartialEq for Font {
    fn eq(&self, other: &Self) -> bool {
        self.size.val() == other.size.val() && self.weight.val() == other.weight.val()
    }
}

impl Font {
    /// Pixels from one character to the next.
    pub(super) fn width(self) -> u32 {
        get_raster_width(self.weight, self.size) as u32
    }

    /// Pixels of a line.
    pub(super) fn height(self) -> u32 {
        self.size.val() as u32
    }
}

impl Item {
    /// Whether this is drawn over what `other` drew without a trace of that being left.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(this), Self::Text(other)) => {
                (this.at, this.columns, this.font) == (other.at, other.columns, other.font)
            }
            (Self::Graph(this), Self::Graph(other)) => this.area == other.area,
            (Self::Gauge { area, .. }, Self::Gauge { area: other, .. }) => area == other,
            _ => self == other,
        }
    }

    /// Draws it. With what it [covers](Self::covers) only where it differs from that.
    pub(super) fn draw<D>(&self, before: Option<&Self>, target: &mut D) -> Result<(), D::Error>
    where
        D: DrawTarget<Color = Rgb888>,
    {
        match (self, before) {
            (Self::Fill(area, color), _) => target.fill_solid(area, *color),
            (Self::Panel(area, color), _) => {
                let corner = Size::new_equal(6);
                RoundedRectangle::with_equal_corners(*area, corner)
                    .draw_styled(&PrimitiveStyle::with_fill(*color), target)
            }
            (Self::Text(text), Some(Self::Text(before))) => text.draw(Some(before), target),
            (Self::Text(text), _) => text.draw(None, target),
            (Self::Graph(graph), Some(Self::Graph(before))) => graph.draw(Some(before), target),
            (Self::Graph(graph), _) => graph.draw(None, target),
            (
                Self::Gauge {
                    area,
                    thousandths,
                    colors,
                },
                _,
            ) => {
                let used = part(area.size.width, u64::from(*thousandths), 1000);
                let [first, second] = split(*area, used);
                target.fill_solid(&first, colors[0])?;
                target.fill_solid(&second, colors[1])
            }
        }
    }
}

/// `value` of `whole` as that part of `length`, which is all at most.
fn part(length: u32, value: u64, whole: u64) -> u32 {
    let part = u128::from(length) * u128::from(value.min(whole)) / u128::from(whole.max(1));
    u32::try_from(part).unwrap_or(length)
}

/// The first `width` columns, and the others.
fn split(area: Rectangle, width: u32) -> [Rectangle; 2] {
    let Size {
        width: whole,
        height,
    } = area.size;
    let right = Point::new(area.top_left.x + width as i32, area.top_left.y);
    [
        Rectangle::new(area.top_left, Size::new(width, height)),
        Rectangle::new(right, Size::new(whole - width, height)),
    ]
}

impl Text {
    /// The characters of the field.
    fn field(&self) -> impl Iterator<Item = char> {
        let blank = repeat_n(' ', self.columns);
        self.text.chars().chain(blank).take(self.columns)
    }

    fn draw<D>(&self, before: Option<&Self>, target: &mut D) -> Result<(), D::Error>
    where
        D: DrawTarget<Color = Rgb888>,
    {
        let alike = before.filter(|other| (self.color, self.behind) == (other.color, other.behind));
        let mut old = alike.map(Self::field);
        let cell = Size::new(self.font.width(), self.font.height());
        for (column, character) in self.field().enumerate() {
            if old.as_mut().and_then(Iterator::next) == Some(character) {
                continue;
            }
            let x = self.at.x + (column as u32 * cell.width) as i32;
            let area = Rectangle::new(Point::new(x, self.at.y), cell);
            let Font { size, weight } = self.font;
            let known = get_raster(character, weight, size).filter(|_| character != ' ');
            match known.or_else(|| get_raster('?', weight, size).filter(|_| character != ' ')) {
                Some(raster) => {
                    let pixels = raster.raster().iter().copied().flatten();
                    let colors = pixels.map(|light| mix(self.behind, self.color, *light));
                    target.fill_contiguous(&area, colors)?;
                }
                None => target.fill_solid(&area, self.behind)?,
            }
        }
        Ok(())
    }
}

/// A color between two.
fn mix(from: Rgb888, to: Rgb888, share: u8) -> Rgb888 {
    let share = u16::from(share);
    let mix = |from: u8, to: u8| {
        let mixed = u16::from(from) * (255 - share) + u16::from(to) * share;
        (mixed / 255) as u8
    };
    Rgb888::new(
        mix(from.r(), to.r()),
        mix(from.g(), to.g()),
        mix(from.b(), to.b()),
    )
}

impl Graph {
    fn draw<D>(&self, before: Option<&Self>, target: &mut D) -> Result<(), D::Error>
    where
        D: DrawTarget<Color = Rgb888>,
    {
        let Size { width, height } = self.area.size;
        let half = height.saturating_sub(1) / 2;
        let heights = |graph: &Self, rate: Rate| {
            rate.map(|rate| match part(half, rate, graph.scale) {
                0 if rate > 0 => half.min(1),
                height => height,
            })
        };
        let middle = self.area.top_left.y + half as i32;
        if before.is_none() {
            target.fill_solid(&self.area, self.paper[1])?;
            let line = Point::new(self.area.top_left.x, middle);
            target.fill_solid(&Rectangle::new(line, Size::new(width, 1)), self.paper[0])?;
        }
        for (index, rate) in self.rates.iter().enumerate() {
            let [up, down] = heights(self, *rate);
            let old = before.and_then(|before| Some(heights(before, *before.rates.get(index)?)));
            if old == Some([up, down]) || (old.is_none() && [up, down] == [0, 0]) {
                continue;
            }
            let edge = |index: usize| part(width, index as u64, SECONDS as u64);
            // A gap between two bars, where there is room for it.
            let (left, right) = (edge(index), edge(index + 1));
            let bar = (right - left).saturating_sub(1).max((right - left).min(1));
            let x = self.area.top_left.x + left as i32;
            let mut column = |y: i32, height: u32, color: Rgb888| {
                let area = Rectangle::new(Point::new(x, y), Size::new(bar, height));
                target.fill_solid(&area, color)
            };
            let top = middle - half as i32;
            column(top, half - up, self.paper[1])?;
            column(middle - up as i32, up, self.colors[0])?;
            column(middle + 1, down, self.colors[1])?;
            column(middle + 1 + down as i32, half - down, self.paper[1])?;
        }
        Ok(())
    }
}

/// What must be drawn so that `items` are on the screen where `old` ones are: each with what it is drawn over.
pub(super) fn changes<'a>(
    items: &'a [Item],
    old: &'a [Item],
) -> impl Iterator<Item = (&'a Item, Option<&'a Item>)> {
    let covered = items.len() == old.len() && items.iter().zip(old).all(|(a, b)| a.covers(b));
    let old: &[Item] = if covered { old } else { &[] };
    items.iter().enumerate().filter_map(|(index, item)| {
        let before = old.get(index);
        (before != Some(item)).then_some((item, before))
    })
}
