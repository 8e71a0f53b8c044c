//! Files: on disks, on persistent memory, and on partitions of either.
//!
//! | file        | what is in it                                                             |
//! |-------------|---------------------------------------------------------------------------|
//! | `path.rs`   | names of places: `/blk0/music/tone.wav`                                   |
//! | `medium.rs` | what a file system lies on, by bytes                                      |
//! | `fat.rs`    | FAT12, FAT16, FAT32: read and written                                     |
//! | `exfat.rs`  | exFAT: read                                                               |
//! | `ext4.rs`   | ext2, ext3, ext4: read                                                    |
//! | `foreign.rs`| file systems that are known by name and not read                          |
//! | `partitions.rs` | partition tables: what they have, and why something is not there      |
//!
//! A volume has the name of its device, `/blk0`, or of a partition of it, `/blk0p1`. Nothing is read before somebody wants
//! a file, and nothing is remembered when nobody uses the volume any more, so that a disk may be written by other commands
//! in between.

mod error;
mod exfat;
mod ext4;
mod fat;
mod foreign;
mod medium;
mod partitions;
pub mod path;

pub use error::Error;
pub use hadris_fs::ErrorKind;
pub use path::Path;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use core::ops::ControlFlow;

use chrono::{DateTime, NaiveDateTime};
use embassy_futures::yield_now;
use spin::Mutex;

use self::error::Fault;
use self::medium::Medium;
use crate::platform::memory::heap;

/// Bytes that the entries of a directory may take. More are an error: they would not fit into memory some day.
const MAX_LISTED_BYTES: usize = 2 << 20;
/// Entries that are looked at for those whose names begin in some way.
const MAX_SEARCHED: usize = 64 << 10;
/// The first bytes of a medium, by which it is known.
const START_BYTES: usize = 4096;
/// A good length for reads and writes.
pub const PIECE: usize = 64 << 10;

/// What a directory has.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, without a directory.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file.
    pub size: u64,
    /// When it was last written, as the file system says it: FAT in the local time of whoever wrote it, ext2/3/4 in UTC.
    pub modified: Option<NaiveDateTime>,
}

/// Some of the entries of a directory.
#[derive(Debug)]
pub struct Found {
    /// Those that were looked for.
    pub entries: Vec<Entry>,
    /// There may be more of them.
    pub more: bool,
}

/// The entries of a directory that somebody wants, as many as there is room for.
struct Listing {
    entries: Vec<Entry>,
    bytes: usize,
    /// What the names must begin with, and how many are enough.
    only: Option<(String, usize)>,
    searched: usize,
    more: bool,
}

impl Listing {
    fn new(only: Option<(String, usize)>) -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            only,
            searched: 0,
            more: false,
        }
    }

    /// Whether the entry of this name is to be added; `Break` if no other need be looked at.
    fn wants(&mut self, name: &str) -> ControlFlow<(), bool> {
        let Some((start, enough)) = &self.only else {
            return ControlFlow::Continue(true);
        };
        self.searched += 1;
        let wanted = name.starts_with(start);
        if self.searched > MAX_SEARCHED || wanted && self.entries.len() >= *enough {
            self.more = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(wanted)
    }

    fn add(&mut self, entry: Entry) -> Result<(), Fault> {
        self.bytes += size_of::<Entry>() + entry.name.len();
        let full = self.bytes > MAX_LISTED_BYTES || self.entries.try_reserve(1).is_err();
        if full {
            return Err(ErrorKind::LimitExceeded.into());
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// The fields of a time that is so many seconds after 1970.
fn civil(seconds: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp(seconds, 0).map(|time| time.naive_utc())
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// Something that a kernel gives a meaning to: a device, a pipe, a socket.
    Other,
}

/// A device, or a partition of one.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its name, such as `blk0` or `blk0p1`.
    pub name: String,
    /// Its size in bytes; 0 for a partition that has no blocks.
    pub size: u64,
    /// What the partition table says that it is for.
    pub kind: Option<String>,
    /// What is on it, such as `FAT16 "DEMO", 12 MiB free`, or why it can't be said.
    pub contents: Result<String, Error>,
}

/// Where a volume may be.
struct Place {
    name: String,
    /// What the partition table says that it is for.
    kind: Option<String>,
    medium: Result<Medium, Fault>,
}

impl Place {
    fn whole(device: Medium) -> Self {
        Self {
            name: device.name().into(),
            kind: None,
            medium: Ok(device),
        }
    }
}

enum Volume {
    Fat(fat::Volume),
    ExFat(exfat::Volume),
    Ext4(ext4::Volume),
}

/// A file that is read from its beginning to its end.
pub struct File {
    place: Path,
    file: Reading,
}

enum Reading {
    Fat(fat::File),
    ExFat(exfat::File),
    Ext4(Box<ext4::File>),
}

/// A file that is written from its beginning. What is dropped has all that was written, too, and by a write that was
/// broken off; only the log hears whether that went well.
pub struct NewFile {
    place: Path,
    file: fat::NewFile,
}

static WORKING_DIRECTORY: Mutex<Option<Path>> = Mutex::new(None);

/// The directory that relative paths begin in: at first the first volume there is.
pub async fn working_directory() -> Path {
    let chosen = WORKING_DIRECTORY.lock().clone();
    if let Some(chosen) = chosen {
        return chosen;
    }
    let first = first_volume().await.unwrap_or_default();
    WORKING_DIRECTORY.lock().get_or_insert(first).clone()
}

/// Makes a directory the working directory.
///
/// # Errors
///
/// There is no such directory.
pub async fn change_directory(path: Path) -> Result<(), Error> {
    if kind(&path).await? != Kind::Directory {
        return Err(Error::new(&path, ErrorKind::NotADirectory.into()));
    }
    *WORKING_DIRECTORY.lock() = Some(path);
    Ok(())
}

/// What a word of a command means: a path, if it is relative in the working directory.
pub async fn locate(word: &str) -> Path {
    match word.starts_with('/') {
        true => Path::default().join(word),
        false => working_directory().await.join(word),
    }
}

/// The first volume that files may be on.
async fn first_volume() -> Option<Path> {
    for device in Medium::all() {
        for (place, mounted) in mount_all(device).await {
            if mounted.is_ok() {
                return Some(Path::default().join(&place.name));
            }
        }
    }
    None
}

/// All devices and partitions, and what is on them.
pub async fn volumes() -> Vec<Summary> {
    let mut summaries = Vec::new();
    for device in Medium::all() {
        for (place, mounted) in mount_all(device).await {
            summaries.push(summary(place, mounted).await);
        }
    }
    summaries
}

/// What there is on a device: a file system, or those of its partitions, if it has any; and why something is not there.
async fn mount_all(device: Medium) -> Vec<(Place, Result<Volume, Fault>)> {
    let mut whole = mount(device.clone()).await;
    let mut all = Vec::new();
    if let Err(unknown) = &mut whole
        && unknown.kind == ErrorKind::NotRecognized
    {
        match partitions(&device).await {
            Ok((parts, rest)) => {
                for part in parts {
                    let mounted = match &part.medium {
                        Ok(medium) => mount(medium.clone()).await,
                        Err(fault) => Err(fault.clone()),
                    };
                    all.push((part, mounted));
                }
                if let Some(rest) = rest {
                    match all.is_empty() {
                        true => unknown.reason += &format!("; {rest}"),
                        false => {
                            let rest = format!("there may be more partitions: {rest}");
                            let fault = Fault::new(ErrorKind::Corrupt, rest);
                            all.push((Place::whole(device.clone()), Err(fault)));
                        }
                    }
                }
            }
            Err(fault) => *unknown = fault,
        }
    }
    if all.is_empty() {
        all.push((Place::whole(device), whole));
    }
    all
}

async fn summary(place: Place, mounted: Result<Volume, Fault>) -> Summary {
    let Place { name, kind, medium } = place;
    let size = medium.map_or(0, |medium| medium.size());
    let place = Path::default().join(&name);
    let contents = async {
        let (format, label, free) = match mounted? {
            Volume::Fat(fat) => (fat.format(), fat.label().await?, Some(fat.free().await?)),
            Volume::ExFat(exfat) => ("exFAT, read only", exfat.label().await?, None),
            Volume::Ext4(ext4) => ("ext2/3/4, read only", ext4.label(), None),
        };
        let mut contents = String::from(format);
        if let Some(label) = label {
            contents += &format!(" \"{}\"", path::Shown(&label));
        }
        if let Some(free) = free {
            contents += &format!(", {} KiB free", free >> 10);
        }
        Ok(contents)
    };
    let contents = contents.await.map_err(|fault| Error::new(&place, fault));
    Summary {
        name,
        size,
        kind,
        contents,
    }
}

/// The medium of this name.
async fn find(name: &str) -> Result<Medium, Fault> {
    let devices = Medium::all();
    if let Some(device) = devices.iter().find(|device| device.name() == name) {
        return Ok(device.clone());
    }
    let device = devices.into_iter().find(|device| {
        let number = name.strip_prefix(device.name());
        number.is_some_and(|rest| rest.starts_with('p'))
    });
    let device = device.ok_or_else(|| Fault::new(ErrorKind::NotFound, "no such device"))?;
    let (parts, rest) = partitions(&device).await?;
    let part = parts.into_iter().find(|part| part.name == name);
    let none = || match rest {
        Some(rest) => Fault::new(ErrorKind::NotFound, format!("no such partition; {rest}")),
        None => Fault::new(ErrorKind::NotFound, "no such partition"),
    };
    part.ok_or_else(none)?.medium
}

/// The partitions of a device, and why there may be more; none if it has no partition table.
async fn partitions(device: &Medium) -> Result<(Vec<Place>, Option<String>), Fault> {
    let table = partitions::read(&mut device.clone()).await?;
    let places = table.parts.into_iter().map(|part| {
        let name = format!("{}p{}", device.name(), part.number);
        let blocks = part.blocks.and_then(|blocks| {
            let medium = device.part(name.clone(), blocks);
            medium.ok_or_else(|| "it is not inside the device".into())
        });
        Place {
            name,
            kind: Some(part.kind),
            medium: blocks.map_err(|fault| {
                let fault = format_args!("the partition is not there: {fault}");
                Fault::new(ErrorKind::Corrupt, fault)
            }),
        }
    });
    Ok((places.collect(), table.rest))
}

/// Finds out which file system there is.
async fn mount(medium: Medium) -> Result<Volume, Fault> {
    let len = medium.size().min(START_BYTES as u64);
    let start = medium.clone().read(0, len as usize).await?;
    if ext4::is_ext(&start) {
        return Ok(Volume::Ext4(ext4::Volume::mount(medium).await?));
    }
    if exfat::is_exfat(&start) {
        return Ok(Volume::ExFat(exfat::Volume::mount(medium).await?));
    }
    // Some of these begin as FAT does.
    if let Some(name) = foreign::name(&start) {
        let reason = format!("is {name}, which is not read");
        return Err(Fault::new(ErrorKind::NotRecognized, reason));
    }
    Ok(Volume::Fat(fat::Volume::mount(medium).await?))
}

/// The volume that a path leads to; `None` for the top.
async fn volume(place: &Path) -> Result<Option<Volume>, Error> {
    let Some(name) = place.volume() else {
        return Ok(None);
    };
    let mounted = async { mount(find(name).await?).await };
    let mounted = mounted.await;
    let volume_path = || Path::default().join(name);
    mounted
        .map(Some)
        .map_err(|fault| Error::new(&volume_path(), fault))
}

/// The volume of a file, to write to.
async fn writable(place: &Path) -> Result<fat::Volume, Error> {
    let refused = |kind: ErrorKind| Error::new(place, kind.into());
    match volume(place).await? {
        None => Err(refused(ErrorKind::IsADirectory)),
        Some(Volume::Ext4(_) | Volume::ExFat(_)) => Err(refused(ErrorKind::ReadOnly)),
        Some(Volume::Fat(_)) if place.is_root() => Err(refused(ErrorKind::IsADirectory)),
        Some(Volume::Fat(fat)) => Ok(fat),
    }
}

/// What a path leads to.
///
/// # Errors
///
/// Nothing, or it can't be said.
pub async fn entry(place: &Path) -> Result<Entry, Error> {
    let directory = || Entry {
        name: String::new(),
        kind: Kind::Directory,
        size: 0,
        modified: None,
    };
    let entry = match volume(place).await? {
        None => Ok(directory()),
        Some(Volume::Fat(_) | Volume::ExFat(_)) if place.is_root() => Ok(directory()),
        Some(Volume::Fat(fat)) => fat.entry(&place.on_volume()).await,
        Some(Volume::ExFat(exfat)) => exfat.entry(&place.on_volume()).await,
        Some(Volume::Ext4(ext4)) => ext4.entry(&place.on_volume()).await,
    };
    let name = place.name().map(String::from).unwrap_or_default();
    entry
        .map(|entry| Entry { name, ..entry })
        .map_err(|fault| Error::new(place, fault))
}

/// What kind of thing a path leads to.
///
/// # Errors
///
/// It leads to nothing, or it can't be said.
pub async fn kind(place: &Path) -> Result<Kind, Error> {
    Ok(entry(place).await?.kind)
}

/// What is in a directory of a volume, by name.
///
/// # Errors
///
/// It is no directory, or it can't be read.
pub async fn list(place: &Path) -> Result<Vec<Entry>, Error> {
    Ok(listing(place, Listing::new(None)).await?.entries)
}

/// What in a directory has a name that begins with `start`, or in the top the volumes; `enough` of them at the most.
///
/// # Errors
///
/// It is no directory, or it can't be read.
pub async fn begin_with(place: &Path, start: &str, enough: usize) -> Result<Found, Error> {
    let only = Some((String::from(start), enough));
    let Listing { entries, more, .. } = listing(place, Listing::new(only)).await?;
    Ok(Found { entries, more })
}

async fn listing(place: &Path, listing: Listing) -> Result<Listing, Error> {
    let listed = match volume(place).await? {
        None => list_volumes(listing).await,
        Some(Volume::Fat(fat)) => fat.list(&place.on_volume(), listing).await,
        Some(Volume::ExFat(exfat)) => exfat.list(&place.on_volume(), listing).await,
        Some(Volume::Ext4(ext4)) => ext4.list(&place.on_volume(), listing).await,
    };
    let mut listing = listed.map_err(|fault| Error::new(place, fault))?;
    let by_name = |a: &Entry, b: &Entry| a.name.cmp(&b.name);
    listing.entries.sort_unstable_by(by_name);
    Ok(listing)
}

/// The volumes that files may be on, as directories of the top.
async fn list_volumes(mut listing: Listing) -> Result<Listing, Fault> {
    for device in Medium::all() {
        for (place, mounted) in mount_all(device).await {
            match listing.wants(&place.name) {
                ControlFlow::Continue(wanted) if wanted && mounted.is_ok() => {}
                ControlFlow::Continue(_) => continue,
                ControlFlow::Break(()) => return Ok(listing),
            }
            listing.add(Entry {
                name: place.name,
                kind: Kind::Directory,
                size: 0,
                modified: None,
            })?;
        }
    }
    Ok(listing)
}

/// Opens a file to read it.
///
/// # Errors
///
/// There is no such file, or it can't be read.
pub async fn open(place: &Path) -> Result<File, Error> {
    let path = place.on_volume();
    let file = match volume(place).await? {
        None => Err(ErrorKind::IsADirectory.into()),
        Some(Volume::Fat(fat)) => fat.open(&path).await.map(Reading::Fat),
        Some(Volume::ExFat(exfat)) => exfat.open(&path).await.map(Reading::ExFat),
        Some(Volume::Ext4(ext4)) => ext4
            .open(&path)
            .await
            .map(|file| Reading::Ext4(Box::new(file))),
    };
    let file = file.map_err(|fault| Error::new(place, fault))?;
    let place = place.clone();
    Ok(File { place, file })
}

/// Opens a file to write it from its beginning; it is made if there is none, and what was in it is lost. `source`, if any,
/// is what will be copied: the file must be another one.
///
/// # Errors
///
/// There is no such directory, or nothing can be written there.
pub async fn create(place: &Path, source: Option<&File>) -> Result<NewFile, Error> {
    let source = match source.map(|file| &file.file) {
        Some(Reading::Fat(file)) => Some(file),
        Some(Reading::ExFat(_) | Reading::Ext4(_)) | None => None,
    };
    let volume = writable(place).await?;
    let file = volume.create(&place.on_volume(), source).await;
    let file = file.map_err(|fault| Error::new(place, fault))?;
    let place = place.clone();
    Ok(NewFile { place, file })
}

/// Makes a directory.
///
/// # Errors
///
/// Something has this name, or nothing can be written there.
pub async fn make_directory(place: &Path) -> Result<(), Error> {
    let volume = writable(place).await?;
    let made = volume.make_directory(&place.on_volume()).await;
    made.map_err(|fault| Error::new(place, fault))
}

/// Removes a file.
///
/// # Errors
///
/// There is none, or nothing can be written there.
pub async fn remove_file(place: &Path) -> Result<(), Error> {
    let volume = writable(place).await?;
    let removed = volume.remove_file(&place.on_volume()).await;
    removed.map_err(|fault| Error::new(place, fault))
}

/// Removes a directory that has nothing in it.
///
/// # Errors
///
/// There is none, it is not empty, or nothing can be written there.
pub async fn remove_directory(place: &Path) -> Result<(), Error> {
    let volume = writable(place).await?;
    let removed = volume.remove_directory(&place.on_volume()).await;
    removed.map_err(|fault| Error::new(place, fault))
}

/// Gives a file or directory another name on its volume. What had that name before is not overwritten.
///
/// # Errors
///
/// There is no such file, something has the new name, or that is on another volume.
pub async fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    if from.volume() != to.volume() {
        let other = Fault::new(ErrorKind::Unsupported, "is on another volume; use cp");
        return Err(Error::new(to, other));
    }
    let volume = writable(from).await?;
    let renamed = volume.rename(&from.on_volume(), &to.on_volume()).await;
    match renamed {
        Ok(()) => Ok(()),
        // Either of the two.
        Err(fault) => {
            kind(from).await?;
            Err(Error::new(to, fault))
        }
    }
}

impl File {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match &self.file {
            Reading::Fat(file) => file.size(),
            Reading::ExFat(file) => file.size(),
            Reading::Ext4(file) => file.size(),
        }
    }

    /// The next bytes of the file, `len` or fewer; none at its end.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn read(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let read = match &mut self.file {
            Reading::Fat(file) => file.read(len).await,
            Reading::ExFat(file) => file.read(len).await,
            Reading::Ext4(file) => file.read(len).await,
        };
        // What need not wait, or is not there in a file with holes, would keep others from their turn.
        yield_now().await;
        read.map_err(|fault| Error::new(&self.place, fault))
    }
}

impl File {
    /// All bytes from here on.
    ///
    /// # Errors
    ///
    /// They can't be read, or there is no memory for them.
    pub async fn read_all(mut self) -> Result<Vec<u8>, Error> {
        let no_memory = || {
            let fault = Fault::new(ErrorKind::LimitExceeded, "no memory for the file");
            Error::new(&self.place, fault)
        };
        let size = usize::try_from(self.size()).unwrap_or(usize::MAX);
        let mut all = heap::room(size).ok_or_else(no_memory)?;
        loop {
            let bytes = self.read(PIECE).await?;
            // A file that grows meanwhile is read as long as it was.
            let room = all.capacity() - all.len();
            all.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
            if bytes.is_empty() || bytes.len() >= room {
                return Ok(all);
            }
        }
    }
}

impl NewFile {
    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// There is no room, or they can't be written.
    pub async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        let written = self.file.write(bytes).await;
        written.map_err(|fault| Error::new(&self.place, fault))
    }

    /// Ends the file. All of it is on the medium for good then.
    ///
    /// # Errors
    ///
    /// It could not be written.
    pub async fn close(self) -> Result<(), Error> {
        self.finish(Vec::new(), |_| None).await
    }

    /// Ends the file: appends bytes, and replaces its first ones by what `head` makes of its length, if anything. All of it
    /// is on the medium for good when the future is done, which may be dropped before: the file is ended all the same.
    ///
    /// # Errors
    ///
    /// It could not be written.
    pub fn finish(
        self,
        bytes: Vec<u8>,
        head: impl FnOnce(u64) -> Option<Vec<u8>> + 'static,
    ) -> impl Future<Output = Result<(), Error>> {
        let Self { place, file } = self;
        let finishing = file.finish(bytes, head);
        async move {
            let finished = finishing.await;
            finished.map_err(|fault| Error::new(&place, fault))
        }
    }
}
