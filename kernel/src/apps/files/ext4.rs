//! ext2, ext3 and ext4, read only, by the crate `ext4-view`. It knows nothing of tasks, so each operation runs on a
//! [`fiber`].

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::error::Error;
use core::ops::ControlFlow;

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, ReadDir};
use hadris_fs::ErrorKind;

use super::error::Fault;
use super::medium::Medium;
use super::{Entry, Kind, Listing, civil};
use crate::runtime::fiber;

/// Bytes that are read from the medium at a time, a multiple of any block.
const PIECE: u64 = 64 << 10;
/// How many pieces are kept.
const PIECES: usize = 8;
/// Bytes that the library may have allocated at a time.
const MAX_BYTES: usize = 4 << 20;

/// The superblock and its magic number: where every file system of the family says what it is.
const MAGIC_OFFSET: usize = 1024 + 56;
const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();

/// A file system in use.
#[derive(Clone)]
pub(super) struct Volume {
    fs: Ext4,
}

/// A file that is read from its beginning to its end.
pub(super) struct File {
    /// A fiber has it while it reads. It stays borrowed when the fiber fails: nothing more is known of it then.
    file: Rc<RefCell<ext4_view::File>>,
    at: u64,
    size: u64,
}

/// Whether the first bytes of a medium, 4096 of them, are of this family.
pub(super) fn is_ext(start: &[u8]) -> bool {
    start.get(MAGIC_OFFSET..MAGIC_OFFSET + 2) == Some(&MAGIC)
}

/// Runs an operation where it can wait.
async fn run<T: 'static>(work: impl FnOnce() -> T + 'static) -> Result<T, Fault> {
    let fiber = fiber::run(MAX_BYTES, work);
    let fiber = fiber
        .map_err(|fiber::NoStack| Fault::new(ErrorKind::LimitExceeded, "no memory for a stack"))?;
    let gave_up = |fiber::Failed| {
        let corrupt = "the file system is corrupt: its reader gave up, the log says why";
        Fault::new(ErrorKind::Corrupt, corrupt)
    };
    fiber.await.map_err(gave_up)
}

impl Volume {
    pub(super) async fn mount(medium: Medium) -> Result<Self, Fault> {
        let pieces = VecDeque::new();
        let reader = Box::new(Reader { medium, pieces });
        let fs = run(|| Ext4::load(reader)).await??;
        Ok(Self { fs })
    }

    pub(super) fn label(&self) -> Option<String> {
        let label = self.fs.label().to_str().ok()?;
        (!label.is_empty()).then(|| label.to_string())
    }

    /// What there is at a path, without its name.
    pub(super) async fn entry(&self, path: &str) -> Result<Entry, Fault> {
        let (fs, path) = (self.fs.clone(), path.to_string());
        let metadata = run(move || fs.metadata(path.as_str())).await??;
        Ok(entry(String::new(), kind(metadata.file_type()), &metadata))
    }

    pub(super) async fn list(&self, path: &str, listing: Listing) -> Result<Listing, Fault> {
        let (fs, path) = (self.fs.clone(), path.to_string());
        run(move || entries(fs.read_dir(path.as_str())?, listing)).await?
    }

    pub(super) async fn open(&self, path: &str) -> Result<File, Fault> {
        let (fs, path) = (self.fs.clone(), path.to_string());
        let file = run(move || fs.open(path.as_str())).await??;
        let size = file.metadata().len();
        let file = Rc::new(RefCell::new(file));
        Ok(File { file, at: 0, size })
    }
}

fn entries(directory: ReadDir, mut listing: Listing) -> Result<Listing, Fault> {
    for found in directory {
        let found = found?;
        let name = found.file_name().display().to_string();
        if name == "." || name == ".." {
            continue;
        }
        match listing.wants(&name) {
            ControlFlow::Continue(true) => {
                let kind = kind(found.file_type()?);
                listing.add(entry(name, kind, &found.metadata()?))?;
            }
            ControlFlow::Continue(false) => {}
            ControlFlow::Break(()) => break,
        }
    }
    Ok(listing)
}

fn entry(name: String, kind: Kind, metadata: &Metadata) -> Entry {
    Entry {
        name,
        kind,
        size: metadata.len(),
        modified: civil(metadata.modified().seconds()),
    }
}

fn kind(of: FileType) -> Kind {
    match of {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

impl File {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes of the file, `len` or fewer; none at its end.
    pub(super) async fn read(&mut self, len: usize) -> Result<Vec<u8>, Fault> {
        let (file, at) = (self.file.clone(), self.at);
        let bytes = run(move || {
            let mut file = file
                .try_borrow_mut()
                .map_err(|_| ErrorKind::InvalidHandle)?;
            Ok::<_, Fault>(read(&mut file, at, len)?)
        });
        let bytes = bytes.await??;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

fn read(file: &mut ext4_view::File, at: u64, len: usize) -> Result<Vec<u8>, Ext4Error> {
    // A read that was broken off, or failed, has moved it.
    if file.position() != at {
        file.seek_to(at)?;
    }
    let mut bytes = alloc::vec![0; len];
    let mut done = 0;
    // A call gives the rest of one block at the most.
    while let Some(space) = bytes.get_mut(done..).filter(|space| !space.is_empty()) {
        match file.read_bytes(space)? {
            0 => break,
            read => done += read,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Gives `ext4-view` the bytes of a medium, and keeps those it read last.
struct Reader {
    medium: Medium,
    /// The number of each piece and its bytes, the one used last in front.
    pieces: VecDeque<(u64, Vec<u8>)>,
}

impl Reader {
    fn piece(&mut self, number: u64) -> Result<&[u8], Box<dyn Error + Send + Sync>> {
        let known = self.pieces.iter().position(|(it, _)| *it == number);
        let piece = match known.and_then(|place| self.pieces.remove(place)) {
            Some(piece) => piece,
            None => {
                self.pieces.truncate(PIECES - 1);
                let start = number.saturating_mul(PIECE);
                let len = self.medium.size().saturating_sub(start).min(PIECE);
                let read = self.medium.clone().read(start, len as usize);
                (number, fiber::wait(read)??)
            }
        };
        self.pieces.push_front(piece);
        let front = self.pieces.front();
        Ok(front.map_or(&[], |(_, bytes)| bytes))
    }
}

impl Ext4Read for Reader {
    fn read(&mut self, start: u64, dst: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut done = 0;
        while let Some(space) = dst.get_mut(done..).filter(|space| !space.is_empty()) {
            let at = start.checked_add(done as u64).ok_or(PastTheEnd)?;
            let piece = self.piece(at / PIECE)?;
            let bytes = piece.get((at % PIECE) as usize..).unwrap_or_default();
            let len = bytes.len().min(space.len());
            let (Some(space), Some(bytes)) = (space.get_mut(..len), bytes.get(..len)) else {
                break;
            };
            if len == 0 {
                return Err(PastTheEnd.into());
            }
            space.copy_from_slice(bytes);
            done += len;
        }
        Ok(())
    }
}

/// The file system has something behind the end of its medium.
#[derive(Debug)]
struct PastTheEnd;

impl core::fmt::Display for PastTheEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the file system is corrupt: it reaches past the end of the device")
    }
}

impl Error for PastTheEnd {}
