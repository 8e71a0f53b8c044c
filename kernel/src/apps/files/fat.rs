//! FAT12, FAT16 and FAT32, read and written, by the crate `hadris-fat`.
//!
//! Whatever changes the file system runs in a task of its own, so that a command that is broken off never leaves half a
//! change behind. Each change is on the medium for good when its function returns.

use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::Future;
use core::mem;
use core::ops::ControlFlow;

use async_lock::Mutex;
use hadris_fat::async_::FatFs;
use hadris_fat::{CacheOptions, FatKind};
use hadris_fs::{
    Clock, DateTime, ErrorKind, FileType, Metadata, MountOptions, Name, NoClock, OpenOptions,
    RenameMode, Resolve,
};

use super::error::Fault;
use super::medium::{DeviceError, Medium};
use super::{Entry, Kind, Listing, civil};
use crate::platform::time;
use crate::runtime::task::{self, InTurn, Promise, Unfinished};

type Fat = hadris_fs::local::Volume<FatFs<Medium>>;
type FatFile = hadris_fs::local::File<FatFs<Medium>>;

/// What is remembered of a directory, and of where files are: enough to stay quick in large ones.
const CHAIN_POSITIONS: usize = 64;
const BLOCKS: usize = 32;

/// All file systems in use. Whoever uses the same one must use the same value: each remembers what it wrote.
static MOUNTED: Mutex<Vec<(Medium, Weak<Mounted>)>> = Mutex::new(Vec::new());

/// What files are stamped with: the time, or 1980-01-01 on a machine without a clock.
struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> DateTime {
        let now = time::wall().map(|now| DateTime::from_unix_seconds(now.timestamp()));
        now.and_then(Result::ok).unwrap_or(NoClock::TIME)
    }
}

struct Mounted {
    fat: Fat,
    kind: FatKind,
}

/// A file system in use.
#[derive(Clone)]
pub(super) struct Volume {
    mounted: Arc<Mounted>,
}

/// A file that is read from its beginning to its end.
pub(super) struct File {
    file: FatFile,
    at: u64,
    size: u64,
    // The volume must not be mounted a second time while the file is open.
    _volume: Volume,
}

/// A file that is written. What is dropped is closed all the same, after all writes that were begun.
pub(super) struct NewFile {
    /// Not there after it was ended.
    file: Option<InTurn<Writing>>,
    path: String,
}

/// A file in the hands of who writes it.
struct Writing {
    file: FatFile,
    volume: Volume,
    len: u64,
    // Its size is in its directory when it is closed, not before.
    _unfinished: Unfinished,
}

impl Volume {
    /// Opens the file system, or joins those who use it already.
    pub(super) async fn mount(medium: Medium) -> Result<Self, Fault> {
        let mut all = MOUNTED.lock().await;
        all.retain(|(_, volume)| volume.strong_count() > 0);
        let place = medium.clone();
        // By whatever name: a partition may be all of its device.
        let known = all.iter().find(|(known, _)| known.overlaps(&place));
        if let Some((known, volume)) = known {
            let mounted = volume.upgrade().filter(|_| known.is_same(&place));
            return mounted.map(|mounted| Self { mounted }).ok_or_else(|| {
                let name = known.name();
                Fault::new(
                    ErrorKind::Busy,
                    format_args!("is in use as a part of {name}"),
                )
            });
        }
        let options = MountOptions::new().with_clock(&WallClock);
        let fs = FatFs::mount(medium, options).await;
        let fs = fs.map_err(|failed| Fault::from(DeviceError::from(failed)))?;
        let kind = fs.info().kind();
        let cache = CacheOptions::new()
            .with_chain_positions(CHAIN_POSITIONS)
            .with_blocks(BLOCKS);
        let fat = Fat::new(fs.with_cache(cache));
        let mounted = Arc::new(Mounted { fat, kind });
        all.push((place, Arc::downgrade(&mounted)));
        Ok(Self { mounted })
    }

    fn fat(&self) -> &Fat {
        &self.mounted.fat
    }

    pub(super) fn format(&self) -> &'static str {
        match self.mounted.kind {
            FatKind::Fat12 => "FAT12",
            FatKind::Fat16 => "FAT16",
            _ => "FAT32",
        }
    }

    pub(super) async fn label(&self) -> Result<Option<String>, Fault> {
        let mut space = [0; 64];
        let mut fs = self.fat().lock().await?;
        let label = fs.label(&mut space).await?;
        Ok(label.map(|label| label.to_string()))
    }

    /// Bytes that are free.
    pub(super) async fn free(&self) -> Result<u64, Fault> {
        let stats = self.fat().lock().await?.statfs().await?;
        let block = u64::from(stats.block_size());
        Ok(stats.free_blocks().saturating_mul(block))
    }

    /// What there is at a path, without its name.
    pub(super) async fn entry(&self, path: &str) -> Result<Entry, Fault> {
        Ok(entry(String::new(), &self.fat().metadata(path).await?))
    }

    pub(super) async fn list(&self, path: &str, mut listing: Listing) -> Result<Listing, Fault> {
        let mut directory = self.fat().read_dir(path).await?;
        while let Some(found) = directory.next_entry().await {
            let found = found?;
            let name = String::from_utf8_lossy(found.name().as_bytes());
            match listing.wants(&name) {
                ControlFlow::Continue(true) => {
                    listing.add(entry(name.into_owned(), found.metadata()))?;
                }
                ControlFlow::Continue(false) => {}
                ControlFlow::Break(()) => break,
            }
        }
        Ok(listing)
    }

    pub(super) async fn open(&self, path: &str) -> Result<File, Fault> {
        let file = self.fat().open(path, OpenOptions::new().read()).await?;
        let size = file.metadata().await?.len();
        let _volume = self.clone();
        Ok(File {
            file,
            at: 0,
            size,
            _volume,
        })
    }

    /// Opens a file to be written from its beginning; what was in it is lost. `source` is a file that must not be it: a
    /// file has more than one name here.
    pub(super) async fn create(&self, path: &str, source: Option<&File>) -> Result<NewFile, Fault> {
        let options = OpenOptions::new().write().create();
        let source = source
            .filter(|file| Arc::ptr_eq(&file._volume.mounted, &self.mounted))
            .map(|file| file.file.node());
        let file = self
            .changing(path, async move |fat, path| {
                let mut file = fat.open(path.as_str(), options).await?;
                if Some(file.node()) == source {
                    let same = "is the file that is read";
                    return Err(Fault::new(ErrorKind::AlreadyExists, same));
                }
                file.set_len(0).await?;
                Ok(file)
            })
            .await?;
        let writing = Writing {
            file,
            volume: self.clone(),
            len: 0,
            _unfinished: Unfinished::begin(),
        };
        Ok(NewFile {
            file: Some(InTurn::new(writing)),
            path: path.to_string(),
        })
    }

    pub(super) async fn make_directory(&self, path: &str) -> Result<(), Fault> {
        self.changing(path, async |fat, path| Ok(fat.create_dir(path).await?))
            .await
    }

    pub(super) async fn remove_file(&self, path: &str) -> Result<(), Fault> {
        self.changing(path, async |fat, path| Ok(fat.remove_file(path).await?))
            .await
    }

    pub(super) async fn remove_directory(&self, path: &str) -> Result<(), Fault> {
        self.changing(path, async |fat, path| Ok(fat.remove_dir(path).await?))
            .await
    }

    /// Gives something another name. What had that name before is not overwritten.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        let to = to.to_string();
        self.changing(from, async move |fat, from| {
            let mut fs = fat.lock().await?;
            let (from_directory, from) = split(&from);
            let (to_directory, to) = split(&to);
            let from_directory = fs.resolve(from_directory, Resolve::Lexical).await?;
            let renamed = async {
                let to_directory = fs.resolve(to_directory, Resolve::Lexical).await?;
                let (from, to) = (Name::new(from), Name::new(to));
                let mode = RenameMode::NoReplace;
                let renamed = fs
                    .rename(from_directory, from, to_directory, to, mode)
                    .await;
                fs.forget(to_directory, 1);
                renamed
            };
            let renamed = renamed.await;
            fs.forget(from_directory, 1);
            Ok(renamed?)
        })
        .await
    }

    /// Changes something, and has all of it on the medium in the end, whatever becomes of the caller.
    async fn changing<T: 'static>(
        &self,
        path: &str,
        change: impl AsyncFnOnce(Fat, String) -> Result<T, Fault> + 'static,
    ) -> Result<T, Fault> {
        let (volume, path) = (self.clone(), path.to_string());
        let unclaimed = unclaimed(path.clone());
        let changing = async move {
            let changed = change(volume.fat().clone(), path).await;
            let synced = volume.sync().await;
            let changed = changed?;
            synced?;
            Ok(changed)
        };
        task::begin(changing, unclaimed).await
    }

    async fn sync(&self) -> Result<(), Fault> {
        Ok(self.fat().lock().await?.sync().await?)
    }
}

/// A path as the directory and the name in it.
fn split(path: &str) -> (&[u8], &[u8]) {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    (directory.as_bytes(), name.as_bytes())
}

pub(super) fn entry(name: String, metadata: &Metadata) -> Entry {
    let modified = metadata.modified();
    Entry {
        name,
        kind: kind(metadata.file_type()),
        size: metadata.len(),
        // No zone is given to the volume, so these are the fields as they are stored.
        modified: modified.and_then(|time| civil(time.unix_seconds())),
    }
}

fn kind(of: FileType) -> Kind {
    match of {
        FileType::File => Kind::File,
        FileType::Dir => Kind::Directory,
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
        let bytes = read_at(&self.file, self.at, len).await?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

/// The bytes of a file from `at` on, `len` or fewer; none at its end.
pub(super) async fn read_at<F>(
    file: &hadris_fs::local::File<F>,
    at: u64,
    len: usize,
) -> Result<Vec<u8>, Fault>
where
    F: hadris_fs::local::FileSystem,
    Fault: From<hadris_io::Error<F::DeviceError>>,
{
    let mut bytes = alloc::vec![0; len];
    let mut done = 0;
    while let Some(space) = bytes.get_mut(done..).filter(|space| !space.is_empty()) {
        match file.read_at(at.saturating_add(done as u64), space).await? {
            0 => break,
            read => done += read,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

impl NewFile {
    /// Appends bytes, unless the machine is about to be switched off: then the file is to end.
    pub(super) async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Fault> {
        if task::is_shutting_down() {
            let ending = "the machine is being switched off";
            return Err(Fault::new(ErrorKind::Busy, ending));
        }
        let unclaimed = unclaimed(self.path.clone());
        let file = self.file.as_mut().ok_or(ErrorKind::InvalidHandle)?;
        let append = async move |file: &mut Writing| file.write(file.len, &bytes).await;
        file.next(append, unclaimed).await
    }

    /// Ends the file: appends bytes, and replaces its first ones by what `head` makes of its length, if anything. All of
    /// that is begun when this returns.
    pub(super) fn finish(
        mut self,
        bytes: Vec<u8>,
        head: impl FnOnce(u64) -> Option<Vec<u8>> + 'static,
    ) -> impl Future<Output = Result<(), Fault>> {
        let finishing = self.end(async move |mut file| {
            let written = file.write(file.len, &bytes).await;
            let headed = match head(file.len) {
                Some(head) => file.write(0, &head).await,
                None => Ok(()),
            };
            // Whatever failed, the file has what it has, and is closed.
            let closed = file.close().await;
            written.and(headed).and(closed)
        });
        async {
            match finishing {
                Some(finishing) => finishing.await,
                None => Err(ErrorKind::InvalidHandle.into()),
            }
        }
    }

    fn end(
        &mut self,
        work: impl AsyncFnOnce(Writing) -> Result<(), Fault> + 'static,
    ) -> Option<Promise<Result<(), Fault>>> {
        let file = self.file.take()?;
        Some(file.last(work, unclaimed(mem::take(&mut self.path))))
    }
}

/// What becomes of a failure that nobody waits for.
fn unclaimed<T>(path: String) -> impl FnOnce(Result<T, Fault>) {
    move |changed| {
        if let Err(fault) = changed {
            log::warn!("{path}: was not finished: {}", fault.reason);
        }
    }
}

impl Writing {
    async fn write(&mut self, start: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let offset = start + done as u64;
            match self.file.write_at(offset, rest).await? {
                0 => return Err(ErrorKind::NoSpace.into()),
                written => done += written,
            }
            self.len = self.len.max(start + done as u64);
        }
        Ok(())
    }

    async fn close(self) -> Result<(), Fault> {
        let closed = self.file.close().await;
        let synced = self.volume.sync().await;
        closed?;
        synced
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        drop(self.end(Writing::close));
    }
}
