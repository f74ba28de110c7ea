//! One open file: positioned reads that notice change, and the map.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use memmap2::Mmap;

use crate::{ErrorKind, WeightsError};

/// Bytes that can be read at a position.
pub(crate) trait ReadAt {
    fn len(&self) -> u64;
    /// Fills `buf` from `offset`; the range lies within `len`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ErrorKind>;
}

impl ReadAt for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ErrorKind> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(ErrorKind::FileChanged)?);
        Ok(())
    }
}

/// A regular file, with its size and modification time as they were when it was opened.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
    map: Mutex<Option<Arc<Mmap>>>,
}

/// What must not change while a file is in use. The change time is left out: a file that was replaced by renaming
/// another over it keeps its bytes, but not its change time.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Stamp { len: meta.len(), modified: meta.modified().ok() }
    }
}

impl ModelFile {
    /// Opens `path`, which must be a regular file. Never blocks on a pipe and never opens a device.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let fail = |kind| WeightsError::new(path, kind);
        // Looked at before it is opened, since opening a device can have effects, and again once it is open, since
        // the name may lead elsewhere by then.
        regular(&std::fs::metadata(path).map_err(io_at("stat")).map_err(fail)?).map_err(fail)?;
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open(path).map_err(io_at("open")).map_err(fail)?;
        let meta = file.metadata().map_err(io_at("stat")).map_err(fail)?;
        regular(&meta).map_err(fail)?;
        Ok(ModelFile { path: path.into(), file, stamp: Stamp::of(&meta), map: Mutex::new(None) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn verify_unchanged(&self) -> Result<(), ErrorKind> {
        let meta = self.file.metadata().map_err(io_at("stat"))?;
        if Stamp::of(&meta) == self.stamp { Ok(()) } else { Err(ErrorKind::FileChanged) }
    }

    /// The whole file mapped, once for all who ask.
    pub(crate) fn map(&self) -> Result<Arc<Mmap>, ErrorKind> {
        let mut slot = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = &*slot {
            return Ok(map.clone());
        }
        self.verify_unchanged()?;
        // SAFETY: the map is read-only and private to this struct's `Arc`, so nothing in this process writes to it. That
        // no other process shortens or rewrites the file while it is mapped cannot be enforced; the caller of the only
        // public way here states it by passing `TrustFile`.
        let map = unsafe { Mmap::map(&self.file) }.map_err(io_at("map"))?;
        let map = Arc::new(map);
        *slot = Some(map.clone());
        Ok(map)
    }
}

impl ReadAt for ModelFile {
    fn len(&self) -> u64 {
        self.stamp.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ErrorKind> {
        fill(offset, buf, |at, buf| read_some(&self.file, at, buf))?;
        self.verify_unchanged()
    }
}

/// Reads until `buf` is full: an interrupted read is tried again, a short one continued, the end of the file is change,
/// since no one asks for bytes beyond the size the file had.
fn fill(
    offset: u64,
    mut buf: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> Result<(), ErrorKind> {
    let mut at = offset;
    while !buf.is_empty() {
        match read(at, buf) {
            Ok(0) => return Err(ErrorKind::FileChanged),
            Ok(n) => {
                buf = buf.get_mut(n..).unwrap_or_default();
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_at("read")(e)),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, at)
}

#[cfg(windows)]
fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    // This moves the file's cursor, which nothing here uses.
    std::os::windows::fs::FileExt::seek_read(file, buf, at)
}

fn regular(meta: &Metadata) -> Result<(), ErrorKind> {
    let kind = meta.file_type();
    if kind.is_file() {
        return Ok(());
    }
    Err(ErrorKind::NotAFile { what: if kind.is_dir() { "a directory" } else { "a pipe, device or socket" } })
}

pub(crate) fn io_at(op: &'static str) -> impl Fn(io::Error) -> ErrorKind {
    move |e| ErrorKind::Io { op, kind: e.kind() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_and_short_reads_are_continued() {
        let data: Vec<u8> = (0..100).collect();
        let mut turn = 0;
        let mut got = [0; 60];
        fill(10, &mut got, |at, buf| {
            turn += 1;
            if turn % 3 == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = buf.len().min(7);
            buf[..n].copy_from_slice(&data[at as usize..at as usize + n]);
            Ok(n)
        })
        .unwrap();
        assert_eq!(got[..], data[10..70]);
    }

    #[test]
    fn end_of_file_is_change_and_errors_are_named() {
        let mut buf = [0; 8];
        assert_eq!(fill(0, &mut buf, |_, _| Ok(0)), Err(ErrorKind::FileChanged));
        let eio = fill(0, &mut buf, |_, _| Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(eio, Err(ErrorKind::Io { op: "read", kind: io::ErrorKind::WouldBlock }));
    }
}
