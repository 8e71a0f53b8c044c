//! The commands of the graphics adapters: screen, with an operation as its first word.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::Future;
use core::time::Duration;

use vringlet::gpu::{Head, Rect, Size};

use super::bench::measure;
use super::files::path;
use crate::apps::files;
use crate::apps::picture::Picture;
use crate::devices::gpu::{self, Adapter, Borrowed};
use crate::platform::{number, time};
use crate::runtime::task;
use crate::shell::{Args, Command, Error, Output};

pub(in crate::shell) const COMMANDS: &[Command] = &[Command {
    name: "screen",
    usage: &[
        "screen info",
        "screen dashboard",
        "screen test",
        "screen show FILE",
        "screen fill X Y WIDTH HEIGHT COLOR [display=D]",
        "screen cursor X Y [display=D]",
        "screen cursor off [display=D]",
        "screen bench [area=WIDTHxHEIGHT] [count=N] [display=D]",
    ],
    help: "shows displays, and shows things on them; files are PNG, BMP or JPEG; a color is a number such as 0xff8000; bench \
           draws and sends an area again and again, all of the display if nothing is said",
    run: |args, out| Box::pin(run(args, out)),
}];

/// How long a device may take to show something, and a large picture to be drawn.
const PATIENCE: Duration = Duration::from_secs(30);

async fn run(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    match args.word("operation")? {
        "info" => info(args, out),
        "dashboard" => dashboard(args).await,
        "test" => test(args, out).await,
        "show" => show(args, out).await,
        "fill" => fill(args, out).await,
        "cursor" => cursor(args).await,
        "bench" => bench(args, out).await,
        other => Err(Error::usage(format_args!("no operation {other}"))),
    }
}

fn adapter() -> Result<&'static Adapter, Error> {
    let adapters = gpu::all();
    let adapter = adapters.first().copied();
    adapter.ok_or_else(|| Error::failed("there is no graphics adapter"))
}

/// The display that the option `display` names, or the first.
fn head(adapter: &Adapter, args: &mut Args<'_>) -> Result<Head, Error> {
    let wanted = args.number_option("display")?;
    let mut heads = adapter.heads().into_iter();
    let head = heads.find(|head| wanted.is_none_or(|wanted| u64::from(head.scanout) == wanted));
    head.ok_or_else(|| Error::failed("there is no such display"))
}

fn coordinate(args: &mut Args<'_>, name: &str) -> Result<u32, Error> {
    let value = args.number(name)?;
    u32::try_from(value).map_err(|_| Error::usage(format_args!("{name} is too large")))
}

/// Waits for the device, but not for ever.
async fn wait(showing: impl Future<Output = Result<(), vringlet::Error>>) -> Result<(), Error> {
    match time::timeout(PATIENCE, showing).await {
        Ok(result) => result.map_err(Error::failed),
        Err(_) => Err(Error::failed("the device takes too long")),
    }
}

fn transferred(adapter: &Adapter) -> u64 {
    let report = adapter.with(|gpu| vringlet::Driver::report(gpu));
    let mut counters = report.counters.into_iter();
    let bytes = counters.find(|(name, _)| *name == "bytes_transferred");
    bytes.map_or(0, |(_, bytes)| bytes)
}

fn info(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    for adapter in gpu::all() {
        let (scanouts, layout) = adapter.with(|gpu| (gpu.scanouts(), gpu.layout().cloned()));
        let name = &adapter.name;
        writeln!(out, "{name}: scanouts={scanouts}")?;
        for head in layout.iter().flat_map(|layout| layout.heads()) {
            let Rect { x, y, .. } = head.rect;
            write!(
                out,
                "{name}: display={} size={} at={x},{y}",
                head.scanout,
                head.rect.size()
            )?;
            if let Some(edid) = adapter.with(|gpu| gpu.edid(head.scanout).cloned()) {
                let monitor = edid.name.as_deref().unwrap_or("unnamed");
                write!(out, " monitor=\"{monitor}\"")?;
                if let Some(preferred) = edid.preferred {
                    write!(out, " preferred={preferred}")?;
                }
                if let Some((width, height)) = edid.millimetres {
                    write!(out, " millimetres={width}x{height}")?;
                }
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

async fn dashboard(args: Args<'_>) -> Result<(), Error> {
    args.end()?;
    for adapter in gpu::all() {
        show_dashboard(adapter).await?;
    }
    Ok(())
}

async fn test(args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    args.end()?;
    let (bytes, sizes) = draw_test(adapter()?).await?;
    for (scanout, size) in sizes {
        writeln!(out, "display={scanout} size={size}")?;
    }
    writeln!(out, "transferred={bytes}")?;
    Ok(())
}

/// Draws the test pattern. Says how many bytes went to the device, and how large each display is shown.
async fn draw_test(adapter: &Adapter) -> Result<(u64, Vec<(u32, Size)>), Error> {
    let mut sizes = Vec::new();
    let work = async |desk: &mut Borrowed<'_>| {
        desk.show_test().await?;
        for head in adapter.heads() {
            sizes.push((head.scanout, desk.fit(head)?));
        }
        Ok(())
    };
    let bytes = draw(adapter, work).await?;
    Ok((bytes, sizes))
}

/// Part of the tour: draws on every display of an adapter, then shows the dashboard again, whatever came of it.
pub(super) async fn check(adapter: &'static Adapter, out: Output<'_>) -> Result<(), Error> {
    let drawn = task::to_the_end(async move {
        let drawn = draw_test(adapter).await;
        show_dashboard(adapter).await?;
        drawn
    });
    let (bytes, sizes) = drawn.await?;
    for (_, size) in sizes {
        writeln!(out, "{}: {size} drawn", adapter.name)?;
    }
    writeln!(out, "{}: {bytes} bytes sent", adapter.name)?;
    Ok(())
}

async fn show_dashboard(adapter: &Adapter) -> Result<(), Error> {
    wait(async {
        adapter.desk().await.show_dashboard();
        Ok(())
    })
    .await
}

/// Draws something and says how many bytes went to the device.
async fn draw(
    adapter: &Adapter,
    work: impl AsyncFnOnce(&mut Borrowed<'_>) -> Result<(), vringlet::Error>,
) -> Result<u64, Error> {
    let mut before = 0;
    wait(async {
        let mut desk = adapter.desk().await;
        before = transferred(adapter);
        work(&mut desk).await
    })
    .await?;
    Ok(transferred(adapter) - before)
}

async fn show(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let path = path(&mut args, "FILE").await?;
    args.end()?;
    let adapter = adapter()?;
    let bytes = files::open(&path).await?.read_all().await?;
    let picture = Picture::decode(bytes).await;
    let picture = picture.map_err(|reason| Error::failed(format_args!("{path}: {reason}")))?;
    let size = picture.dimensions();
    let transferred = draw(adapter, async move |desk| desk.show_picture(picture).await).await?;
    writeln!(out, "picture={size} transferred={transferred}")?;
    Ok(())
}

async fn fill(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let adapter = adapter()?;
    let head = head(adapter, &mut args)?;
    let rect = Rect::new(
        coordinate(&mut args, "X")?,
        coordinate(&mut args, "Y")?,
        coordinate(&mut args, "WIDTH")?,
        coordinate(&mut args, "HEIGHT")?,
    );
    let color = coordinate(&mut args, "COLOR")?;
    args.end()?;
    let transferred = draw(adapter, async |desk| desk.fill(head, rect, color).await).await?;
    writeln!(out, "transferred={transferred}")?;
    Ok(())
}

async fn cursor(mut args: Args<'_>) -> Result<(), Error> {
    let adapter = adapter()?;
    let head = head(adapter, &mut args)?;
    let first = args.word("X")?;
    if first == "off" {
        args.end()?;
        let hidden = adapter.with(|gpu| gpu.hide_cursor(head.scanout));
        return hidden.map_err(Error::failed);
    }
    let x = number::parse(first).and_then(|x| u32::try_from(x).ok());
    let x = x.ok_or_else(|| Error::usage("X is not a number"))?;
    let y = coordinate(&mut args, "Y")?;
    args.end()?;
    wait(async { adapter.desk().await.point(head, x, y).await }).await
}

/// Fills an area in the corner of a display with one color after another, each of which is sent before the next.
async fn bench(mut args: Args<'_>, out: Output<'_>) -> Result<(), Error> {
    let adapter = adapter()?;
    let head = head(adapter, &mut args)?;
    let count = args.number_option("count")?.unwrap_or(100);
    let area = args.option("area").map(|text| {
        let (width, height) = text.split_once('x')?;
        Some(Size::new(width.parse().ok()?, height.parse().ok()?))
    });
    args.end()?;
    let mut desk = adapter.desk().await;
    let whole = desk.fit(head).map_err(Error::failed)?;
    let area = match area {
        None => whole,
        Some(Some(area))
            if (1..=whole.width).contains(&area.width)
                && (1..=whole.height).contains(&area.height) =>
        {
            area
        }
        Some(_) => return Err(Error::usage(format_args!("area is 1x1 to {whole}"))),
    };
    let rect = Rect::new(0, 0, area.width, area.height);
    // What the device has to be told only once.
    desk.fill(head, rect, 0).await.map_err(Error::failed)?;
    let sent_before = transferred(adapter);
    let work = async {
        for number in 1..=count {
            // Its low bits are all that there is of a color.
            desk.fill(head, rect, number as u32).await?;
        }
        Ok(())
    };
    let report = || adapter.with(|gpu| vringlet::Driver::report(gpu));
    let (shown, took) = measure(report, work).await;
    shown.map_err(|error: vringlet::Error| Error::failed(error))?;
    let sent = transferred(adapter) - sent_before;
    let requests = took.requests;
    writeln!(
        out,
        "bench op=show area={area} frames={count} transferred={sent} requests={requests} {took}"
    )?;
    Ok(())
}
