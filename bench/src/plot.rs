//! Pictures of results, as SVG. What they take is a few lines and texts, so they are written here and by no crate.

use crate::compare::{Did, Outcome, Table};
use crate::report::median;
use crate::side::Side;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 50.0;
/// One for each side.
const COLORS: [&str; 4] = ["#c02020", "#2060c0", "#208040", "#808080"];
const GRID: &str = "#dddddd";
const TEXT: &str = "#000000";

/// Operations in a second against the depth, of the rows that say one; `None` if there are fewer than three of them.
pub(crate) fn by_depth(table: &Table) -> Option<String> {
    let rows: Vec<(f64, &Outcome)> = table
        .rows
        .iter()
        .filter(|row| row.name.starts_with("randread"))
        .filter_map(|row| Some((row.name.split_once("iodepth=")?.1.parse().ok()?, row)))
        .collect();
    if rows.len() < 3 {
        return None;
    }
    let all = || rows.iter().flat_map(|(_, row)| row.sides.values());
    let samples = all().flat_map(|did| &did.samples);
    let most = samples.copied().fold(0.0, f64::max);
    let deepest = rows.iter().map(|(depth, _)| *depth).fold(2.0, f64::max);

    let mut picture = Picture::new(&format!(
        "{}: thousands of random 4k reads a second, by depth",
        table.title
    ));
    picture.across = (0.0, deepest.log2());
    picture.up = (0.0, most);
    let step = round_step(most / 5.0);
    let mut rate = 0.0;
    while rate <= most {
        picture.row(rate, &format!("{}", rate / 1e3));
        rate += step;
    }
    for (depth, _) in &rows {
        picture.column(depth.log2(), &format!("{depth}"));
    }
    for (side, color) in Side::ALL.into_iter().zip(COLORS) {
        let points = rows.iter();
        let points = points.filter_map(|(depth, row)| Some((depth.log2(), side_of(row, side)?)));
        let points: Vec<(f64, &Did)> = points.collect();
        for (at, did) in &points {
            let least = did.samples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = did.samples.iter().copied().fold(0.0, f64::max);
            picture.path(&[(*at, least), (*at, most)], color);
            picture.dot(*at, median(&did.samples), color);
        }
        let middles = points.iter().map(|(at, did)| (*at, median(&did.samples)));
        let middles: Vec<(f64, f64)> = middles.collect();
        picture.path(&middles, color);
        if let Some((at, rate)) = middles.last() {
            picture.beside(*at, *rate, side.name(), color);
        }
    }
    Some(picture.end())
}

/// How many of the requests took at most how long, of the rows of which that is known, with their names.
pub(crate) fn latencies(table: &Table) -> Vec<(&str, String)> {
    let known = |row: &Outcome| row.sides.values().any(|did| !did.latencies.is_empty());
    let rows = table.rows.iter().filter(|row| known(row));
    rows.map(|row| (row.name.as_str(), draw_latencies(&table.title, row)))
        .collect()
}

fn draw_latencies(title: &str, row: &Outcome) -> String {
    let all = || row.sides.values().flat_map(|did| &did.latencies);
    let logs = || all().map(|(_, nanoseconds)| nanoseconds.max(1.0).log10());
    let first = logs().fold(f64::INFINITY, f64::min).floor();
    let last = logs().fold(0.0, f64::max).ceil().max(first + 1.0);
    let name = &row.name;
    let mut picture = Picture::new(&format!(
        "{title}, {name}: per cent of the requests that took at most so many microseconds"
    ));
    picture.across = (first, last);
    picture.up = (0.0, 1000.0);
    for per_cent in [0, 25, 50, 75, 100] {
        picture.row(f64::from(per_cent) * 10.0, &format!("{per_cent}"));
    }
    let mut log = first;
    while log <= last {
        picture.column(log, &format!("{}", 10f64.powf(log - 3.0)));
        log += 1.0;
    }
    for (number, (side, color)) in Side::ALL.into_iter().zip(COLORS).enumerate() {
        let Some(did) = side_of(row, side).filter(|did| !did.latencies.is_empty()) else {
            continue;
        };
        let points = did.latencies.iter();
        let points = points.map(|(per_mille, ns)| (ns.max(1.0).log10(), *per_mille));
        picture.path(&points.collect::<Vec<_>>(), color);
        picture.beside(last, 1000.0 - 60.0 * number as f64, side.name(), color);
    }
    picture.end()
}

fn side_of(row: &Outcome, side: Side) -> Option<&Did> {
    row.sides.get(side.name())
}

/// A picture in the making: a field in which values go across and up.
struct Picture {
    svg: String,
    across: (f64, f64),
    up: (f64, f64),
}

impl Picture {
    fn new(title: &str) -> Self {
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut picture = Self {
            svg,
            across: (0.0, 1.0),
            up: (0.0, 1.0),
        };
        picture.text(LEFT, 18.0, "start", title, TEXT);
        picture
    }

    fn x(&self, value: f64) -> f64 {
        let (first, last) = self.across;
        LEFT + (WIDTH - LEFT - RIGHT) * (value - first) / (last - first)
    }

    fn y(&self, value: f64) -> f64 {
        let (first, last) = self.up;
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value - first) / (last - first))
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str, color: &str) {
        self.svg += &format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{color}\">{text}</text>\n"
        );
    }

    /// A line of the grid from left to right, and what it stands for.
    fn row(&mut self, value: f64, text: &str) {
        let (first, last) = self.across;
        self.path(&[(first, value), (last, value)], GRID);
        let y = self.y(value) + 4.0;
        self.text(LEFT - 8.0, y, "end", text, TEXT);
    }

    /// One from the bottom to the top.
    fn column(&mut self, value: f64, text: &str) {
        let (first, last) = self.up;
        self.path(&[(value, first), (value, last)], GRID);
        let x = self.x(value);
        self.text(x, HEIGHT - BOTTOM + 20.0, "middle", text, TEXT);
    }

    fn path(&mut self, points: &[(f64, f64)], color: &str) {
        let point = |(x, y): &(f64, f64)| format!("{:.1},{:.1}", self.x(*x), self.y(*y));
        let points: Vec<String> = points.iter().map(point).collect();
        let points = points.join(" ");
        self.svg += &format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\"/>\n");
    }

    fn dot(&mut self, x: f64, y: f64, color: &str) {
        let (x, y) = (self.x(x), self.y(y));
        self.svg += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>\n");
    }

    /// Text to the right of a place.
    fn beside(&mut self, x: f64, y: f64, text: &str, color: &str) {
        let (x, y) = (self.x(x) + 8.0, self.y(y) + 4.0);
        self.text(x, y, "start", text, color);
    }

    fn end(self) -> String {
        self.svg + "</svg>\n"
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1.0).log10().floor());
    let mut steps = [1.0, 2.0, 5.0].into_iter().map(|step| step * power);
    steps.find(|step| *step >= least).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Measure;

    fn table(rows: Vec<Outcome>) -> Table {
        Table {
            title: "Disk".into(),
            note: String::new(),
            measure: Measure::Rate,
            rows,
        }
    }

    #[test]
    fn each_side_has_a_line_with_a_point_for_each_depth() {
        let row = |depth: &u32| Outcome {
            name: format!("randread 4k iodepth={depth}"),
            sides: [Side::Ours, Side::Linux]
                .map(|side| {
                    let did = Did {
                        samples: vec![1000.0 * f64::from(*depth); 3],
                        ..Did::default()
                    };
                    (side.name().to_string(), did)
                })
                .into(),
        };
        let drawn = |depths: &[u32]| by_depth(&table(depths.iter().map(row).collect()));
        assert!(drawn(&[1, 2]).is_none());
        let svg = drawn(&[1, 2, 4]).unwrap_or_default();
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.contains(">Linux</text>") && svg.ends_with("</svg>\n"));
        // The deepest is at the right and the fastest at the top.
        assert!(svg.contains(&format!("{:.1},{TOP:.1}", WIDTH - RIGHT)));
    }

    #[test]
    fn latencies_rise_to_the_right() {
        let did = Did {
            latencies: vec![(0.0, 1e4), (500.0, 2e4), (1000.0, 1e6)],
            ..Did::default()
        };
        let table = table(vec![Outcome {
            name: "work".into(),
            sides: [(Side::Linux.name().to_string(), did)].into(),
        }]);
        let drawn = latencies(&table);
        let svg = drawn.first().map_or("", |(_, svg)| svg);
        let (left, bottom, right) = (LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT);
        assert!(
            svg.contains(&format!("points=\"{left:.1},{bottom:.1} ")),
            "{svg}"
        );
        assert!(svg.contains(&format!(" {right:.1},{TOP:.1}\"")), "{svg}");
        assert!(svg.contains(">Linux</text>") && !svg.contains(">vringlet</text>"));
    }

    #[test]
    fn steps_are_round() {
        let steps = [1.0, 3.0, 7.0, 1200.0].map(round_step);
        assert_eq!(steps, [1.0, 5.0, 10.0, 2000.0]);
    }
}
