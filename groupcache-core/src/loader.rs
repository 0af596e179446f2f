//! Loaders: what users implement, what a load is told, and what it may answer.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    error::BoxError,
    flight::nesting::{CURRENT, LoadContext},
    value::{Json, Prost, Value},
};

/// Gets a value from where it really lives.
///
/// Functions and async closures without captures are loaders; state is handed to them by
/// [`loader_with`](crate::GroupBuilder::loader_with). Implement the trait when a load must know more than its
/// key.
///
/// A load runs in a task of its own on the node's deadline, whatever becomes of those who wait for it. It is
/// dropped when that deadline passes, and a panic is an error for those who wait. It must not block its
/// thread: move what blocks to `tokio::task::spawn_blocking`.
///
/// ```
/// use groupcache_core::{Load, LoadError, Loaded, Loader};
///
/// struct Greeting;
///
/// impl Loader<String> for Greeting {
///     async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
///         Ok(Loaded::new(format!("hello {}", load.key())))
///     }
/// }
/// ```
pub trait Loader<V: Value>: Send + Sync + 'static {
    /// Gets the value of [`Load::key`].
    fn load(&self, load: Load<'_, V>) -> impl Future<Output = Result<Loaded<V>, LoadError>> + Send;
}

/// Gets the values of many keys at once: one query where a [`Loader`] would make one for each key.
///
/// Loads that begin in the same moment are handed to it together, at most
/// [`max_batch`](crate::GroupBuilder::max_batch) of them: the keys of a [`get_many`](crate::Group::get_many), here or at
/// another node, and those of callers that come together. Each key is loaded once all the same, however many ask for it.
/// A load that another load waits for comes alone. What else is said of a [`Loader`] holds too, except that a circle of
/// loads through a batch of several keys may only end by its deadline.
///
/// ```
/// use groupcache_core::{loader::BatchLoader, LoadError, Loaded};
///
/// struct Greetings;
///
/// impl BatchLoader<String> for Greetings {
///     async fn load_many(&self, keys: &[&str]) -> Result<Vec<Result<Loaded<String>, LoadError>>, LoadError> {
///         Ok(keys.iter().map(|key| Ok(Loaded::new(format!("hello {key}")))).collect())
///     }
/// }
/// ```
pub trait BatchLoader<V: Value>: Send + Sync + 'static {
    /// Gets the values of all keys: one outcome for each, in their order. No key comes twice in one call. An error is that
    /// of all of them.
    fn load_many(
        &self,
        keys: &[&str],
    ) -> impl Future<Output = Result<Vec<Result<Loaded<V>, LoadError>>, LoadError>> + Send;
}

/// What a load is told.
pub struct Load<'a, V> {
    key: &'a str,
    group: &'a str,
    deadline: Instant,
    reason: LoadReason,
    previous: Option<&'a V>,
}

impl<V> fmt::Debug for Load<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key: it may be a secret.
        f.debug_struct("Load").field("group", &self.group).field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Why this node loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadReason {
    /// It owns the key.
    Owner,
    /// Another node owns the key and could not answer; the value is kept for a short time only.
    Fallback,
    /// It owns the key and has a value, which is stale or will be soon; nobody waits.
    Refresh,
}

impl<'a, V> Load<'a, V> {
    pub(crate) fn new(
        key: &'a str,
        group: &'a str,
        deadline: Instant,
        reason: LoadReason,
        previous: Option<&'a V>,
    ) -> Self {
        Self { key, group, deadline, reason, previous }
    }

    /// The key, 1 to 1,024 bytes.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// The name of the group.
    pub fn group(&self) -> &'a str {
        self.group
    }

    /// When the load is aborted.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Why this node loads.
    pub fn reason(&self) -> LoadReason {
        self.reason
    }

    /// The value that this node still has, stale or about to be: for a conditional request (`If-None-Match`), whose
    /// answer may be [`Loaded::unchanged`]. `None` when there is none.
    pub fn previous(&self) -> Option<&'a V> {
        self.previous
    }

    /// Carries the chain of nested loads into a future that the loader spawns.
    ///
    /// Gets within the loader itself carry it already. A spawned task that gets from a group outside of a
    /// scope works too, but a circle of loads through it ends by its deadline instead of at once.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F, V> {
        let lineage = LoadContext::current();
        async move {
            match lineage {
                Some(lineage) => CURRENT.scope(lineage, future).await,
                None => future.await,
            }
        }
    }
}

/// What a loader answers: a value with what is to become of it, or that there is none.
#[derive(Clone, Debug)]
#[must_use]
pub struct Loaded<V> {
    pub(crate) what: What<V>,
    pub(crate) keep: Keep,
}

/// What a loader found.
#[derive(Clone, Debug)]
pub(crate) enum What<V> {
    Value(V),
    NotFound,
    /// What [`Load::previous`] is.
    Unchanged,
}

/// How long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// As long as the group says.
    AsTheGroup,
    For(Duration),
    Forever,
    Not,
}

impl<V> Loaded<V> {
    /// A value, kept as long as the group says.
    pub fn new(value: impl Into<V>) -> Self {
        Self { what: What::Value(value.into()), keep: Keep::AsTheGroup }
    }

    /// There is no such thing. Callers get an error with [`is_not_found`](crate::Error::is_not_found). It is
    /// remembered as long as [`GroupBuilder::negative_time_to_live`](crate::GroupBuilder::negative_time_to_live) says,
    /// which is not at all by default.
    pub fn not_found() -> Self {
        Self { what: What::NotFound, keep: Keep::AsTheGroup }
    }

    /// The value is what [`Load::previous`] is, and is kept on as if it had been loaded now.
    ///
    /// Where there is no previous value, it is an error of the load.
    pub fn unchanged() -> Self {
        Self { what: What::Unchanged, keep: Keep::AsTheGroup }
    }

    /// Keeps it this long instead of the group's time to live; jitter and the group's cap still shorten it. Zero = do not
    /// keep.
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.keep = if time_to_live.is_zero() { Keep::Not } else { Keep::For(time_to_live) };
        self
    }

    /// Keeps it until it is evicted or changed, or as long as the group's cap allows.
    pub fn never_expires(mut self) -> Self {
        self.keep = Keep::Forever;
        self
    }

    /// Hands it to everyone who waits and forgets it.
    pub fn do_not_keep(mut self) -> Self {
        self.keep = Keep::Not;
        self
    }
}

/// Why a load failed: the cause, and whether a later attempt may succeed.
///
/// Any error becomes one with `?` or `.into()`, and is permanent until [`transient`](Self::transient) says
/// otherwise. It is deliberately no `std::error::Error` itself, which is what allows that conversion.
pub struct LoadError {
    pub(crate) cause: BoxError,
    pub(crate) is_transient: bool,
}

impl LoadError {
    /// A failure that a later attempt may not meet; callers see [`is_transient`](crate::Error::is_transient).
    pub fn transient(cause: impl Into<BoxError>) -> Self {
        Self { cause: cause.into(), is_transient: true }
    }

    /// A failure that asking again does not mend.
    pub fn permanent(cause: impl Into<BoxError>) -> Self {
        Self { cause: cause.into(), is_transient: false }
    }
}

impl fmt::Debug for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadError").field("cause", &self.cause).field("is_transient", &self.is_transient).finish()
    }
}

impl<E: Into<BoxError>> From<E> for LoadError {
    fn from(cause: E) -> Self {
        Self::permanent(cause)
    }
}

/// What a loader function may return for a group of `V`: a `V`, an `Option<V>` (`None` = not found), a
/// [`Loaded<V>`], and for a group of [`Json<T>`] or [`Prost<T>`] also a `T` or an `Option<T>`.
pub trait IntoLoaded<V> {
    /// Turns it into the general form.
    fn into_loaded(self) -> Loaded<V>;
}

impl<V: Value> IntoLoaded<V> for V {
    fn into_loaded(self) -> Loaded<V> {
        Loaded::new(self)
    }
}

impl<V: Value> IntoLoaded<V> for Option<V> {
    fn into_loaded(self) -> Loaded<V> {
        self.map_or_else(Loaded::not_found, Loaded::new)
    }
}

impl<V: Value> IntoLoaded<V> for Loaded<V> {
    fn into_loaded(self) -> Loaded<V> {
        self
    }
}

impl<T> IntoLoaded<Json<T>> for T {
    fn into_loaded(self) -> Loaded<Json<T>> {
        Loaded::new(Json::new(self))
    }
}

impl<T> IntoLoaded<Json<T>> for Option<T> {
    fn into_loaded(self) -> Loaded<Json<T>> {
        self.map_or_else(Loaded::not_found, |value| Loaded::new(Json::new(value)))
    }
}

impl<T> IntoLoaded<Prost<T>> for T {
    fn into_loaded(self) -> Loaded<Prost<T>> {
        Loaded::new(Prost::new(self))
    }
}

impl<T> IntoLoaded<Prost<T>> for Option<T> {
    fn into_loaded(self) -> Loaded<Prost<T>> {
        self.map_or_else(Loaded::not_found, |message| Loaded::new(Prost::new(message)))
    }
}

/// A function from a key to a future of a value: the bound of [`loader`](crate::GroupBuilder::loader).
///
/// It exists because the future of an `AsyncFn(&str)` is not provably `Send` on stable Rust, and loads are
/// spawned. It is implemented for functions and for async closures without captures.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a loader of `{V}`",
    label = "not a loader",
    note = "a loader is `async |key: &str| -> Result<{V}, E>` without captures, an `async fn(&str)`, or a type that implements `Loader<{V}>`",
    note = "state that a closure would capture goes through `.loader_with(state, async |state: &S, key: &str| ...)`"
)]
pub trait LoadFn<'a, V>: Send + Sync {
    /// What the future gives.
    type Output: IntoLoadResult<V>;
    /// The future.
    type Future: Future<Output = Self::Output> + Send + 'a;

    /// Calls it.
    fn call(&self, key: &'a str) -> Self::Future;
}

impl<'a, V, F, Fut> LoadFn<'a, V> for F
where
    F: Fn(&'a str) -> Fut + Send + Sync,
    Fut: Future + Send + 'a,
    Fut::Output: IntoLoadResult<V>,
{
    type Output = Fut::Output;
    type Future = Fut;

    fn call(&self, key: &'a str) -> Fut {
        self(key)
    }
}

/// As [`LoadFn`], with a state: the bound of [`loader_with`](crate::GroupBuilder::loader_with).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a loader of `{V}` with state `{S}`",
    note = "write `.loader_with(state, async |state: &{S}, key: &str| -> Result<{V}, E> {{ ... }})`"
)]
pub trait LoadFnWith<'a, S, V>: Send + Sync {
    /// What the future gives.
    type Output: IntoLoadResult<V>;
    /// The future.
    type Future: Future<Output = Self::Output> + Send + 'a;

    /// Calls it.
    fn call(&self, state: &'a S, key: &'a str) -> Self::Future;
}

impl<'a, S: 'a, V, F, Fut> LoadFnWith<'a, S, V> for F
where
    F: Fn(&'a S, &'a str) -> Fut + Send + Sync,
    Fut: Future + Send + 'a,
    Fut::Output: IntoLoadResult<V>,
{
    type Output = Fut::Output;
    type Future = Fut;

    fn call(&self, state: &'a S, key: &'a str) -> Fut {
        self(state, key)
    }
}

/// A `Result` of something that is [`IntoLoaded`], with any error.
pub trait IntoLoadResult<V> {
    /// Turns it into the general form.
    fn into_load_result(self) -> Result<Loaded<V>, LoadError>;
}

impl<V, T: IntoLoaded<V>, E: Into<LoadError>> IntoLoadResult<V> for Result<T, E> {
    fn into_load_result(self) -> Result<Loaded<V>, LoadError> {
        self.map(T::into_loaded).map_err(Into::into)
    }
}

pub(crate) type LoadFuture<'a, V> = Pin<Box<dyn Future<Output = Result<Loaded<V>, LoadError>> + Send + 'a>>;

/// A loader of any kind, as a group holds it.
pub(crate) trait AnyLoader<V: Value>: Send + Sync + 'static {
    fn start<'a>(&'a self, load: Load<'a, V>) -> LoadFuture<'a, V>;
}

/// A type that implements [`Loader`], functions included.
pub(crate) struct Typed<L>(pub(crate) L);

impl<V: Value, L: Loader<V>> AnyLoader<V> for Typed<L> {
    fn start<'a>(&'a self, load: Load<'a, V>) -> LoadFuture<'a, V> {
        Box::pin(self.0.load(load))
    }
}

/// A function and its state.
pub(crate) struct WithState<S, F>(pub(crate) S, pub(crate) F);

impl<V: Value, S: Send + Sync + 'static, F> AnyLoader<V> for WithState<S, F>
where
    F: for<'a> LoadFnWith<'a, S, V> + 'static,
{
    fn start<'a>(&'a self, load: Load<'a, V>) -> LoadFuture<'a, V> {
        let future = self.1.call(&self.0, load.key);
        Box::pin(async move { future.await.into_load_result() })
    }
}

impl<V: Value, F> Loader<V> for F
where
    F: for<'a> LoadFn<'a, V> + 'static,
{
    fn load(&self, load: Load<'_, V>) -> impl Future<Output = Result<Loaded<V>, LoadError>> + Send {
        let future = self.call(load.key);
        async move { future.await.into_load_result() }
    }
}

pub(crate) type SharedLoader<V> = Arc<dyn AnyLoader<V>>;

type LoadManyFuture<'a, V> =
    Pin<Box<dyn Future<Output = Result<Vec<Result<Loaded<V>, LoadError>>, LoadError>> + Send + 'a>>;

/// A batch loader of any kind, as a group holds it.
pub(crate) trait AnyBatchLoader<V: Value>: Send + Sync + 'static {
    fn start<'a>(&'a self, keys: &'a [&'a str]) -> LoadManyFuture<'a, V>;
}

impl<V: Value, L: BatchLoader<V>> AnyBatchLoader<V> for L {
    fn start<'a>(&'a self, keys: &'a [&'a str]) -> LoadManyFuture<'a, V> {
        Box::pin(self.load_many(keys))
    }
}

pub(crate) type SharedBatchLoader<V> = Arc<dyn AnyBatchLoader<V>>;

/// Stands where a group with a batch loader has no other; it is never called.
pub(crate) struct NoLoader;

impl<V: Value> AnyLoader<V> for NoLoader {
    fn start<'a>(&'a self, _: Load<'a, V>) -> LoadFuture<'a, V> {
        Box::pin(async { Err(LoadError::permanent("this group has a batch loader only")) })
    }
}
