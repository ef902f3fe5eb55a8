//! Tables and migrations. `PRAGMA user_version` is the schema version, `PRAGMA application_id`
//! tells our files from others.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::StoreError;

/// ASCII `PCLS`.
const APPLICATION_ID: i32 = 0x5043_4c53;

/// Each element takes the schema from its index to its index plus one. Never edit one that was
/// released; append.
const MIGRATIONS: &[&str] = &["
CREATE TABLE policies (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    body      TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;
CREATE TABLE modes (
    group_name TEXT PRIMARY KEY,
    mode       TEXT NOT NULL CHECK (mode IN ('discover', 'monitor', 'protect'))
) STRICT;
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
CREATE TABLE inventory (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    source TEXT NOT NULL,
    text   TEXT NOT NULL
) STRICT;
CREATE TABLE edges (
    key  TEXT PRIMARY KEY,
    body TEXT NOT NULL
) STRICT;
CREATE TABLE learning (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    body TEXT NOT NULL
) STRICT;
CREATE TABLE generations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    generation INTEGER NOT NULL,
    time       TEXT NOT NULL,
    uid        INTEGER,
    what       TEXT NOT NULL,
    detail     TEXT NOT NULL
) STRICT;
"];

/// Schema version this program writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let corrupt = |error| classify(path, error);
    let mut connection = Connection::open(path).map_err(corrupt)?;
    connection
        .busy_timeout(Duration::from_secs(2))
        .map_err(corrupt)?;
    // The first statement that reads the header finds out whether this is a database at all.
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
        .map_err(corrupt)?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(corrupt)?;
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(corrupt)?;
    if verdict != "ok" {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            detail: verdict,
        });
    }
    migrate(path, &mut connection)?;
    Ok(connection)
}

pub(super) fn migrate(path: &Path, connection: &mut Connection) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let application: i32 = transaction.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: u32 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            found: application,
        });
    }
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    for migration in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()?;
    Ok(())
}

fn classify(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::Corrupt {
            path: path.to_owned(),
            detail: error.to_string(),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy {
            path: path.to_owned(),
        },
        _ => StoreError::Sql(error),
    }
}
