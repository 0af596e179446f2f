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

/// What the service answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Data {
    guid: String,
    /// When the row was created: RFC 3339 with fractions, in UTC.
    date_created: String,
}

/// How long a statement waits for another process that writes.
const BUSY: Duration = Duration::from_secs(1);
/// How long opening waits for other processes that open the same file.
const OPENING: Duration = Duration::from_secs(5);

/// A connection to the file; SQLite lets one caller at a time use it.
pub(crate) struct Database {
    connection: Arc<Mutex<Connection>>,
}

impl Database {
    /// Opens the file, or creates it.
    pub(crate) async fn open(path: &Path) -> Result<Self, BoxError> {
        let end = Instant::now() + OPENING;
        loop {
            match prepare(path) {
                Ok(connection) => return Ok(Self { connection: Arc::new(Mutex::new(connection)) }),
                // The change to WAL does not wait for others that do the same.
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

    /// The row of a guid; the first access creates it.
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
    // Readers and the writer do not wait for each other, and a commit does not wait for the disk.
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS data (guid TEXT PRIMARY KEY, date_created TEXT NOT NULL) WITHOUT ROWID",
    )?;
    // A file that can only be read has been opened without complaint so far.
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
