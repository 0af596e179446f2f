//! Where users really live: one table of a SQLite database.
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

/// A connection, and how often it was asked for a user. Clones are the same one.
#[derive(Clone)]
pub struct Database {
    connection: Arc<Mutex<Connection>>,
    queries: Arc<AtomicUsize>,
}

impl Database {
    /// One that lives as long as this program.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn in_memory() -> rusqlite::Result<Self> {
        Self::with(Connection::open_in_memory()?)
    }

    /// A file, which is made where it is missing.
    ///
    /// # Errors
    /// When it cannot be written, or is something else.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        Self::with(Connection::open(path)?)
    }

    fn with(connection: Connection) -> rusqlite::Result<Self> {
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS users (id TEXT PRIMARY KEY, name TEXT NOT NULL, age INTEGER NOT NULL)",
        )?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), queries: Arc::default() })
    }

    /// The user of that id; `None` when there is none.
    ///
    /// # Errors
    /// Those of SQLite.
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

    /// Writes a user: a new one, or another version.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn save(&self, user: &User) -> rusqlite::Result<()> {
        let row = (&user.id, &user.name, user.age);
        self.connection().execute("INSERT OR REPLACE INTO users (id, name, age) VALUES (?1, ?2, ?3)", row)?;
        Ok(())
    }

    /// How often it was asked for a user.
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
