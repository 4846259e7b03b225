//! The server's private directory, and the account that it runs under.
//!
//! PostgreSQL refuses to run as root, so a root process gives the directory to the user `postgres`,
//! or `nobody` if there is none. Promises a directory that this account can reach, fill and remove,
//! closed to others, with a path short enough for a socket. The guard removes it. Called by
//! [`super::Postgres`].

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The longest path of a directory for a socket: the socket's name adds 20 bytes, and the smallest
/// limit of the supported systems is 103.
const LONGEST: usize = 80;

/// The account of a server that a root process starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A fresh directory with its owner.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    account: Option<Account>,
}

impl Home {
    /// Creates the directory under the first suitable temporary directory.
    pub(super) fn create() -> Result<Self> {
        let name = format!("status-indexer-pg-{:08x}", rand::random::<u32>());
        let bases = [
            std::env::temp_dir(),
            PathBuf::from("/tmp"),
            PathBuf::from("/var/tmp"),
        ];
        let mut obstacle = None;
        for base in bases
            .iter()
            .filter(|base| base.as_os_str().len() + name.len() < LONGEST)
        {
            match Self::create_in(base, &name) {
                Ok(home) => return Ok(home),
                Err(error) => obstacle = obstacle.or(Some(error)),
            }
        }
        match obstacle {
            Some(error) => Err(error),
            None => bail!("the paths of the temporary directories are too long for a socket"),
        }
    }

    fn create_in(base: &Path, name: &str) -> Result<Self> {
        let base =
            fs::canonicalize(base).with_context(|| format!("cannot use {}", base.display()))?;
        let path = base.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Self::hand_over(&base, &path)
            .inspect_err(|_| {
                // Still empty; the first error says more than a second one would.
                let _ = fs::remove_dir(&path);
            })
            .map(|account| Self { path, account })
    }

    /// Gives the directory to the server's account when this process is root.
    fn hand_over(base: &Path, path: &Path) -> Result<Option<Account>> {
        // The creator of a directory owns it: the portable way to get the user id.
        if fs::metadata(path)?.uid() != 0 {
            return Ok(None);
        }
        if !base.ancestors().all(|directory| grants(directory, 0o001)) || !grants(base, 0o002) {
            bail!(
                "{} is not open to the account that the server runs under",
                base.display()
            );
        }
        let account = Account::find()?;
        chown(path, Some(account.uid), Some(account.gid))
            .with_context(|| format!("cannot give {} to another user", path.display()))?;
        // The umask of the process may have removed more bits.
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        Ok(Some(account))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn account(&self) -> Option<Account> {
        self.account
    }
}

impl Account {
    fn find() -> Result<Self> {
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| accounts.lines().find_map(|line| Self::parse(line, name)))
            .context("PostgreSQL refuses to run as root, and this machine has neither a user postgres nor a user nobody: run this as another user")
    }

    /// Reads `name:password:uid:gid:...`.
    fn parse(line: &str, wanted: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (name == wanted && uid != 0).then_some(Self { uid, gid })
    }
}

/// Whether the directory grants the bit to everybody.
fn grants(directory: &Path, bit: u32) -> bool {
    fs::metadata(directory).is_ok_and(|found| found.mode() & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::Account;

    #[test]
    fn an_account_is_found_by_its_complete_name() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        let account = Account::parse(line, "postgres").expect("the line has that name");
        assert_eq!((account.uid, account.gid), (101, 104));
        assert!(Account::parse(line, "post").is_none());
        assert!(Account::parse("postgres:x:0:0::/:/bin/sh", "postgres").is_none());
        assert!(Account::parse("", "postgres").is_none());
    }
}
