//! Database: one table of SQLite, the source of the users.
use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use groupcache_discovery::BoxError;
use rusqlite::{Connection, OptionalExtension};

use crate::User;

/// Connection to the database, with the number of queries for users. A clone shares both.
#[derive(Clone)]
pub struct Database {
    connection: Arc<Mutex<Connection>>,
    queries: Arc<AtomicUsize>,
}

impl Database {
    /// Opens an empty database in memory, which ends with the last clone.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn in_memory() -> rusqlite::Result<Self> {
        Self::with(Connection::open_in_memory()?)
    }

    /// Opens a file, or creates it if it is missing.
    ///
    /// # Errors
    /// When the file cannot be written, or is not an SQLite database.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        Self::with(Connection::open(path)?)
    }

    fn with(connection: Connection) -> rusqlite::Result<Self> {
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS users (id TEXT PRIMARY KEY, name TEXT NOT NULL, age INTEGER NOT NULL)",
        )?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), queries: Arc::default() })
    }

    /// Returns the user with this id, or `None` when the database has no such user.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub async fn user(&self, id: &str) -> Result<Option<User>, BoxError> {
        self.queries.fetch_add(1, Relaxed);
        let (database, id) = (self.clone(), id.to_owned());
        #[expect(clippy::disallowed_methods, reason = "SQLite blocks its thread, and no simulation runs this")]
        let found = tokio::task::spawn_blocking(move || database.select(id)).await?;
        Ok(found?)
    }

    fn select(&self, id: String) -> rusqlite::Result<Option<User>> {
        let connection = self.connection();
        let mut select = connection.prepare_cached("SELECT name, age FROM users WHERE id = ?1")?;
        let found = select.query_row([&id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        Ok(found.map(|(name, age)| User { id, name, age }))
    }

    /// Writes a user, in place of an older version with the same id.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn save(&self, user: &User) -> rusqlite::Result<()> {
        let row = (&user.id, &user.name, user.age);
        self.connection().execute("INSERT OR REPLACE INTO users (id, name, age) VALUES (?1, ?2, ?3)", row)?;
        Ok(())
    }

    /// Returns the number of calls of [`user`](Self::user).
    pub fn queries(&self) -> usize {
        self.queries.load(Relaxed)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("queries", &self.queries()).finish_non_exhaustive()
    }
}
