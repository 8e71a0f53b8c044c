//! Interleaved frames on their way: [`FrameSink`] takes them, [`FrameSource`] gives them, [`copy`] goes between.
//!
//! Both lend their own memory, so that whoever makes or uses frames does it in the buffer that the device reads or wrote.

use core::fmt;
use core::future::Future;

use super::pcm::Layout;

/// Takes interleaved frames, at the pace at which they are used up.
pub trait FrameSink {
    /// Why frames can't be taken.
    type Error;

    /// What the frames must be.
    fn layout(&self) -> Layout;

    /// Waits until there is room for frames and lends it: at least a byte, not all that there is. What is in there is
    /// undefined. Dropping the future loses nothing.
    fn space(&mut self) -> impl Future<Output = Result<&mut [u8], Self::Error>>;

    /// The first `len` bytes of [`Self::space`] are frames now (or all, if `len` is more).
    fn commit(&mut self, len: usize);

    /// Waits until all frames are used up.
    fn flush(&mut self) -> impl Future<Output = Result<(), Self::Error>>;

    /// Takes all of `frames`.
    fn write_all(&mut self, mut frames: &[u8]) -> impl Future<Output = Result<(), Self::Error>> {
        async move {
            while !frames.is_empty() {
                let done = transfer(frames, self.space().await?);
                self.commit(done);
                frames = frames.get(done..).unwrap_or_default();
            }
            Ok(())
        }
    }
}

/// Gives interleaved frames, at the pace at which they come to be.
pub trait FrameSource {
    /// Why there are no frames.
    type Error;

    /// What the frames are.
    fn layout(&self) -> Layout;

    /// Waits until there are frames and lends them: at least a byte, not all that there are; none at the end. Dropping the
    /// future loses nothing.
    fn frames(&mut self) -> impl Future<Output = Result<&[u8], Self::Error>>;

    /// The first `len` bytes of [`Self::frames`] are done with (or all, if `len` is more).
    fn consume(&mut self, len: usize);
}

/// Why [`copy`] ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError<R, W> {
    /// The source has no frames to give.
    Source(R),
    /// The sink takes none.
    Sink(W),
}

impl<R: fmt::Display, W: fmt::Display> fmt::Display for CopyError<R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => write!(f, "no frames to be had: {error}"),
            Self::Sink(error) => write!(f, "no frames taken: {error}"),
        }
    }
}

impl<R, W> core::error::Error for CopyError<R, W>
where
    R: fmt::Debug + fmt::Display,
    W: fmt::Debug + fmt::Display,
{
}

/// Brings at most `limit` bytes from a source to a sink and says how many it were: fewer if the source ended. Does not
/// flush. The frames are what the source says; the caller sees to it that the sink expects such.
///
/// # Errors
///
/// Those of either side.
pub async fn copy<R: FrameSource, W: FrameSink>(
    source: &mut R,
    sink: &mut W,
    limit: u64,
) -> Result<u64, CopyError<R::Error, W::Error>> {
    let mut copied = 0;
    while copied < limit {
        let space = sink.space().await.map_err(CopyError::Sink)?;
        let frames = source.frames().await.map_err(CopyError::Source)?;
        if frames.is_empty() {
            break;
        }
        let left = usize::try_from(limit - copied).unwrap_or(usize::MAX);
        let done = transfer(frames.get(..left).unwrap_or(frames), space);
        source.consume(done);
        sink.commit(done);
        copied += done as u64;
    }
    Ok(copied)
}

/// Copies as much as fits and says how much that was.
fn transfer(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
        to.copy_from_slice(from);
    }
    len
}
