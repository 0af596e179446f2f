//! The backend: one table of a SQLite file that all processes share.
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use groupcache_discovery::BoxError;
use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// Row of the table, and answer of the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Data {
    guid: String,
    /// Time at which the row was created, in UTC: RFC 3339 with fractions of a second.
    date_created: String,
}

/// Maximum time that a statement waits for another process that writes.
const BUSY: Duration = Duration::from_secs(1);
/// Maximum time that opening waits for other processes that open the same file.
const OPENING: Duration = Duration::from_secs(5);

/// Connection to the file, which SQLite lets one caller at a time use.
pub(crate) struct Database {
    connection: Arc<Mutex<Connection>>,
}

impl Database {
    /// Opens the file, or creates it if it is missing.
    pub(crate) async fn open(path: &Path) -> Result<Self, BoxError> {
        let end = Instant::now() + OPENING;
        loop {
            match prepare(path) {
                Ok(connection) => return Ok(Self { connection: Arc::new(Mutex::new(connection)) }),
                // The change to WAL fails at once, instead of waiting, while another process does the same.
                Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < end => {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(e) => {
                    let path = path.display();
                    let text =
                        format!("cannot use the database {path}, set DATABASE to a file that can be written: {e}");
                    return Err(text.into());
                }
            }
        }
    }

    /// Returns the row of a guid. The first access creates the row.
    pub(crate) async fn fetch(&self, guid: &str) -> Result<Data, BoxError> {
        tracing::info!(key = guid, "fetching key from backend");
        let (connection, guid) = (Arc::clone(&self.connection), guid.to_owned());
        let fetch = move || row(&connection.lock().unwrap_or_else(PoisonError::into_inner), guid);
        #[expect(clippy::disallowed_methods, reason = "SQLite blocks its thread, and no simulation runs this")]
        let fetched = tokio::task::spawn_blocking(fetch).await?;
        Ok(fetched?)
    }
}

fn prepare(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    // With WAL, readers and the writer do not wait for each other. With `normal`, a commit does not wait for the disk.
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS data (guid TEXT PRIMARY KEY, date_created TEXT NOT NULL) WITHOUT ROWID",
    )?;
    // SQLite opens a read-only file without an error, and the following statement fails for such a file.
    connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")?;
    Ok(connection)
}

fn row(connection: &Connection, guid: String) -> rusqlite::Result<Data> {
    let mut create = connection.prepare_cached(
        "INSERT INTO data (guid, date_created) VALUES (?1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) ON CONFLICT DO NOTHING",
    )?;
    create.execute([&guid])?;
    let mut select = connection.prepare_cached("SELECT date_created FROM data WHERE guid = ?1")?;
    let date_created = select.query_row([&guid], |row| row.get(0))?;
    Ok(Data { guid, date_created })
}
