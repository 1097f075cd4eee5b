//! SQLite: a file per test.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::supervisor::Supervisor;
use super::{Error, keeps, local};

const NAME: &str = "sqlite";

/// A database file that belongs to one test, in a directory that disappears with the test process.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
}

/// An SQLite database file for one test; the file itself does not exist yet.
///
/// # Errors
/// When no directory can be made.
pub fn sqlite() -> Result<Database, Error> {
    static DIRECTORY: OnceLock<Result<Supervisor, Error>> = OnceLock::new();
    let supervisor = DIRECTORY
        .get_or_init(|| local::supervise(NAME, None))
        .as_ref()
        .map_err(Clone::clone)?;
    Ok(Database {
        path: supervisor
            .directory()
            .join(format!("test_{}.sqlite", local::nonce())),
    })
}

impl Database {
    /// Where the file is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The path as text, as diesel takes it.
    pub fn url(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if keeps() || std::thread::panicking() {
            if keeps() {
                crate::announce(&format!("outbox-testing: sqlite: kept {}", self.path.display()));
            }
            return;
        }
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut file = self.path.clone().into_os_string();
            file.push(suffix);
            let _ = std::fs::remove_file(file);
        }
    }
}
