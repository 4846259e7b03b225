//! A value that is read from files, and read again when they change.
//!
//! Compares contents, not times or inodes: a renewed Secret of Kubernetes is another target of the
//! same link, and a file system's times may be too coarse. Keeps a digest of the contents only.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

/// The largest file that is read.
const MAX_BYTES: u64 = 256 * 1024;

/// What to make of the contents of the files; the paths are for messages.
pub(super) type Parse<T> = fn(&[PathBuf], &[Vec<u8>]) -> anyhow::Result<T>;

/// What a look at the files found.
pub(super) enum Refreshed {
    /// Nothing new.
    Unchanged,
    /// Other contents, now in use.
    Replaced,
    /// Other contents, or files that cannot be read, with the reason; reported once.
    Failed(anyhow::Error),
}

/// See the module.
#[derive(Debug)]
pub(super) struct FileBacked<T> {
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

/// The state of the files at the last look.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Contents([u8; 32]),
    Unreadable(String),
}

impl<T> FileBacked<T> {
    /// Reads the files for the first time.
    pub(super) fn load(paths: Vec<PathBuf>, parse: Parse<T>) -> anyhow::Result<Self> {
        let contents = read_all(&paths)?;
        let value = parse(&paths, &contents)?;
        Ok(Self {
            paths,
            parse,
            current: RwLock::new(Arc::new(value)),
            seen: Mutex::new(Seen::Contents(digest(&contents))),
        })
    }

    /// The value in use.
    pub(super) fn current(&self) -> Arc<T> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Reads the files again.
    pub(super) fn refresh(&self) -> Refreshed {
        let read = read_all(&self.paths);
        let now = match &read {
            Ok(contents) => Seen::Contents(digest(contents)),
            Err(error) => Seen::Unreadable(format!("{error:#}")),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return Refreshed::Unchanged;
        }
        *seen = now;
        match read.and_then(|contents| (self.parse)(&self.paths, &contents)) {
            Ok(value) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(value);
                Refreshed::Replaced
            }
            Err(error) => Refreshed::Failed(error),
        }
    }
}

fn digest(contents: &[Vec<u8>]) -> [u8; 32] {
    let mut all = Sha256::new();
    for content in contents {
        // With its digest in its place, a byte cannot move from one file to the other unnoticed.
        all.update(Sha256::digest(content));
    }
    all.finalize().into()
}

fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut content = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        u64::try_from(content.len()).is_ok_and(|length| length <= MAX_BYTES),
        "{shown} is larger than {} KiB",
        MAX_BYTES / 1024
    );
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn number(_: &[PathBuf], contents: &[Vec<u8>]) -> anyhow::Result<u32> {
        Ok(std::str::from_utf8(&contents[0])?.trim().parse()?)
    }

    #[test]
    fn a_changed_file_replaces_the_value_and_a_bad_one_is_reported_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("number");
        fs::write(&path, "1").expect("writable");
        let value = FileBacked::load(vec![path.clone()], number).expect("a number");
        assert!(matches!(value.refresh(), Refreshed::Unchanged));
        fs::write(&path, "2").expect("writable");
        assert!(matches!(value.refresh(), Refreshed::Replaced));
        assert_eq!(*value.current(), 2);
        for bad in [Some("x"), None] {
            match bad {
                Some(text) => fs::write(&path, text).expect("writable"),
                None => fs::remove_file(&path).expect("it exists"),
            }
            assert!(matches!(value.refresh(), Refreshed::Failed(_)), "{bad:?}");
            assert!(matches!(value.refresh(), Refreshed::Unchanged), "{bad:?}");
            assert_eq!(*value.current(), 2);
        }
        fs::write(&path, "2").expect("writable");
        assert!(matches!(value.refresh(), Refreshed::Replaced));
    }

    #[test]
    fn a_link_to_another_file_is_a_change() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("one"), "1").expect("writable");
        fs::write(at("two"), "2").expect("writable");
        symlink(at("one"), at("link")).expect("a new link");
        let value = FileBacked::load(vec![at("link")], number).expect("a number");
        symlink(at("two"), at("next")).expect("a new link");
        fs::rename(at("next"), at("link")).expect("the same directory");
        assert!(matches!(value.refresh(), Refreshed::Replaced));
        assert_eq!(*value.current(), 2);
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let read = read(Path::new("/dev/zero"));
        let error = read.expect_err("it is too large").to_string();
        assert_eq!(error, "/dev/zero is larger than 256 KiB");
    }
}
