//! What must survive a restart: policies, modes, inventory, learned edges and the history of
//! policy generations.
//!
//! One thread owns the SQLite connection; everything else holds a [`Store`] handle and sends it
//! work. The database runs in WAL mode with full synchronous commits for policy state, so a crash
//! at any moment leaves the last committed state. The file is readable by its owner only: policies
//! and learned edges describe the network.

mod records;
mod schema;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use rusqlite::Connection;

pub use records::{
    GenerationRow, PersistedModes, PersistedState, StateUpdate, StoredInventory, StoredLearning,
};
pub use schema::SCHEMA_VERSION;

/// File name inside the state directory.
pub const FILE_NAME: &str = "portcullis.db";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be created or opened.
    #[error(
        "cannot open the state database {path}: {source}; check `--state-dir` and its permissions"
    )]
    Open {
        /// Database file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is no SQLite database, or a damaged one.
    #[error(
        "the state database {path} is damaged ({detail}); move it away to start empty \
         (enforcement pinned in the kernel is not affected), or restore a backup"
    )]
    Corrupt {
        /// Database file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The file belongs to another application.
    #[error(
        "{path} is a database of another application (application id {found:#x}); choose another `--state-dir`"
    )]
    Foreign {
        /// Database file.
        path: PathBuf,
        /// Its `application_id`.
        found: i32,
    },
    /// A later version of portcullis wrote the file.
    #[error(
        "the state database {path} has schema {found}, this version knows up to {known}; \
         run the newer version, or move the file away to start empty"
    )]
    Newer {
        /// Database file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Another daemon has the database open.
    #[error(
        "the state database {path} is in use by another daemon; give each daemon its own `--state-dir`"
    )]
    Busy {
        /// Database file.
        path: PathBuf,
    },
    /// A statement failed.
    #[error("state database: {0}")]
    Sql(#[from] rusqlite::Error),
    /// A stored value cannot be read back.
    #[error("state database: {what} cannot be read: {detail}")]
    Value {
        /// Row or column.
        what: &'static str,
        /// Cause.
        detail: String,
    },
    /// The owner thread is gone.
    #[error("the state database is closed")]
    Closed,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

struct Owner {
    sender: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Ok(mut sender) = self.sender.lock() {
            sender.take();
        }
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            // The thread ends when the last queued job is done; a panic in it was already logged.
            let _ = thread.join();
        }
    }
}

/// Handle to the state database. Clones share one owner thread, which ends, after finishing what
/// was queued, when the last handle is dropped.
#[derive(Clone)]
pub struct Store {
    owner: Arc<Owner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens or creates the database in `state_dir` (mode 0700) and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] names the file, what is wrong with it and the way out.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE_NAME);
        create_private(state_dir, &path).map_err(|source| StoreError::Open {
            path: path.clone(),
            source,
        })?;
        let lock = lock_exclusively(&path)?;
        let connection = schema::open(&path)?;
        Self::start(connection, Some(lock))
    }

    /// A database that lives in memory only.
    ///
    /// # Errors
    /// When SQLite cannot be initialized.
    pub fn in_memory() -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        schema::migrate(Path::new(":memory:"), &mut connection)?;
        Self::start(connection, None)
    }

    fn start(mut connection: Connection, lock: Option<File>) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let _lock = lock;
                while let Ok(job) = receiver.recv() {
                    job(&mut connection);
                }
                if let Err(error) = connection.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
                    tracing::debug!(%error, "checkpoint at close");
                }
            })
            .map_err(|source| StoreError::Open {
                path: PathBuf::from(FILE_NAME),
                source,
            })?;
        Ok(Self {
            owner: Arc::new(Owner {
                sender: Mutex::new(Some(sender)),
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        self.owner
            .sender
            .lock()
            .ok()
            .and_then(|sender| sender.as_ref().map(|sender| sender.send(job)))
            .ok_or(StoreError::Closed)?
            .map_err(|_| StoreError::Closed)
    }

    /// Runs `work` on the owner thread and waits for it, blocking the calling thread.
    ///
    /// # Errors
    /// What `work` returns, or [`StoreError::Closed`].
    pub fn call<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(Box::new(move |connection| {
            // The caller may have gone away; its answer is then of no interest.
            let _ = reply.send(work(connection));
        }))?;
        answer.recv().map_err(|_| StoreError::Closed)?
    }

    /// [`Store::call`] for async callers.
    ///
    /// # Errors
    /// What `work` returns, or [`StoreError::Closed`].
    pub async fn call_async<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.send(Box::new(move |connection| {
            let _ = reply.send(work(connection));
        }))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn create_private(state_dir: &Path, path: &Path) -> std::io::Result<()> {
    if !state_dir.is_dir() {
        std::fs::create_dir_all(state_dir)?;
        std::fs::set_permissions(state_dir, std::fs::Permissions::from_mode(0o700))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    // An older or copied file may be wider; -wal and -shm inherit the mode of the main file.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

/// A lock beside SQLite's own ones: it lasts as long as the daemon and says at once that a second
/// daemon shares the state directory.
fn lock_exclusively(path: &Path) -> Result<File, StoreError> {
    let open = |source| StoreError::Open {
        path: path.to_owned(),
        source,
    };
    let lock_path = path.with_extension("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Busy {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(open(source)),
    }
}

#[cfg(test)]
mod tests;
