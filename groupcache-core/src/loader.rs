//! Loaders: the traits that users implement, the context of a load, and its possible results.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    error::BoxError,
    flight::nesting::{CURRENT, LoadContext},
    value::{Json, Prost, Value},
};

/// Source of the values of a group, one key at a time.
///
/// Functions and async closures without captures are loaders, and [`loader_with`](crate::GroupBuilder::loader_with)
/// passes a state to them. Implement the trait if a load must know more than its key.
///
/// A load runs in a task of its own, which continues if the callers that wait for it give up. The load is dropped when
/// the group's [`load_deadline`](crate::GroupBuilder::load_deadline) passes (default: 30 s, permits and retries
/// included). A panic is an error of all waiters. A load must not block its thread, because a blocked thread cannot be
/// aborted: move blocking code to `tokio::task::spawn_blocking`.
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
    /// Loads the value of [`Load::key`].
    ///
    /// # Errors
    /// A [`LoadError`] is the error of all waiters, unless a retry succeeds or the group serves a stale value instead.
    fn load(&self, load: Load<'_, V>) -> impl Future<Output = Result<Loaded<V>, LoadError>> + Send;
}

/// Source of the values of a group, many keys at a time: one query where a [`Loader`] would make one for each key.
///
/// A call gets the keys of loads that begin in the same moment, at most [`max_batch`](crate::GroupBuilder::max_batch)
/// of them: the keys of a [`get_many`](crate::Group::get_many) on this node or on another one, and the keys of callers
/// that get at the same time. Each key is loaded once, however many callers get it. A load that another load waits for
/// is the only one of its call. The rules of a [`Loader`] hold too, except that a cycle of loads through a call with
/// several keys may end only by its deadline.
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
    /// Loads the values of all keys and returns one outcome for each, in their order. No call has a key twice.
    ///
    /// # Errors
    /// An error of the call is the error of all its keys.
    fn load_many(
        &self,
        keys: &[&str],
    ) -> impl Future<Output = Result<Vec<Result<Loaded<V>, LoadError>>, LoadError>> + Send;
}

/// Context of a load: the key, the deadline, the reason, and the previous value.
pub struct Load<'a, V> {
    key: &'a str,
    group: &'a str,
    deadline: Instant,
    reason: LoadReason,
    previous: Option<&'a V>,
}

impl<V> fmt::Debug for Load<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key, which may be a secret.
        f.debug_struct("Load").field("group", &self.group).field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Reason of a load on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadReason {
    /// The loading node owns the key.
    Owner,
    /// Another node owns the key and could not answer, or sent a value that does not decode here. The value is kept for
    /// a short time only, 5 s to 60 s at most.
    Fallback,
    /// The loading node owns the key and has a value that is stale or is about to be. No caller waited when the load
    /// began.
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

    /// Returns the key, 1 to 1,024 bytes.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// Returns the name of the group.
    pub fn group(&self) -> &'a str {
        self.group
    }

    /// Returns the time at which the load is aborted.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the reason why this node loads.
    pub fn reason(&self) -> LoadReason {
        self.reason
    }

    /// Returns the value that this node still has, stale or about to be, or `None` if there is none. A loader may send
    /// it as a conditional request (`If-None-Match`) and return [`Loaded::unchanged`].
    pub fn previous(&self) -> Option<&'a V> {
        self.previous
    }

    /// Returns a future that carries the chain of nested loads, for a task that the loader spawns.
    ///
    /// Gets within the loader itself carry the chain already. A spawned task may get from a group without a scope, but
    /// a cycle of loads through such a task ends by its deadline instead of at once.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F, V> {
        let context = LoadContext::current();
        async move {
            match context {
                Some(context) => CURRENT.scope(context, future).await,
                None => future.await,
            }
        }
    }
}

/// Result of a load: a value or "not found", and how long the result is kept.
#[derive(Clone, Debug)]
#[must_use]
pub struct Loaded<V> {
    pub(crate) finding: Finding<V>,
    pub(crate) keep: Keep,
}

/// Finding of a loader.
#[derive(Clone, Debug)]
pub(crate) enum Finding<V> {
    Value(V),
    NotFound,
    /// The value of [`Load::previous`].
    Unchanged,
}

/// Time for which a result is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The time of the group's settings.
    AsTheGroup,
    For(Duration),
    Forever,
    Not,
}

impl<V> Loaded<V> {
    /// Returns a value that is kept for the group's time to live.
    pub fn new(value: impl Into<V>) -> Self {
        Self { finding: Finding::Value(value.into()), keep: Keep::AsTheGroup }
    }

    /// Returns "not found": callers get an error with [`is_not_found`](crate::Error::is_not_found).
    ///
    /// Memory keeps the result for the group's
    /// [`negative_time_to_live`](crate::GroupBuilder::negative_time_to_live). Default: not at all.
    pub fn not_found() -> Self {
        Self { finding: Finding::NotFound, keep: Keep::AsTheGroup }
    }

    /// Returns the value of [`Load::previous`], which is kept as if it had been loaded now.
    ///
    /// Without a previous value the load fails, with [`is_load_failed`](crate::Error::is_load_failed).
    pub fn unchanged() -> Self {
        Self { finding: Finding::Unchanged, keep: Keep::AsTheGroup }
    }

    /// Keeps the result for this time instead of the group's time to live. The group's jitter and maximum still shorten
    /// the time. Zero means that the result is not kept.
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.keep = if time_to_live.is_zero() { Keep::Not } else { Keep::For(time_to_live) };
        self
    }

    /// Keeps the result until it is evicted or written, or for the group's maximum time to live if there is one.
    pub fn never_expires(mut self) -> Self {
        self.keep = Keep::Forever;
        self
    }

    /// Returns the result to all waiters and does not keep it.
    pub fn do_not_keep(mut self) -> Self {
        self.keep = Keep::Not;
        self
    }
}

/// Reason why a load failed: the cause, and whether a later attempt may succeed.
///
/// Any error converts to a permanent `LoadError` with `?` or `.into()`, and [`transient`](Self::transient) makes a
/// transient one. `LoadError` does not implement `std::error::Error`, because that would forbid the conversion.
pub struct LoadError {
    pub(crate) cause: BoxError,
    pub(crate) is_transient: bool,
}

impl LoadError {
    /// Returns a failure after which a later attempt may succeed. Callers get
    /// [`is_transient`](crate::Error::is_transient), and the group's [`retries`](crate::GroupBuilder::retries) apply.
    pub fn transient(cause: impl Into<BoxError>) -> Self {
        Self { cause: cause.into(), is_transient: true }
    }

    /// Returns a failure that another attempt does not repair.
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

/// Result of a loader function for a group of `V`: a `V`, an `Option<V>` (`None` means "not found") or a [`Loaded<V>`],
/// and for a group of [`Json<T>`] or [`Prost<T>`] also a `T` or an `Option<T>`.
pub trait IntoLoaded<V> {
    /// Converts the result into the general form.
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

/// Function from a key to a future of a value, for [`loader`](crate::GroupBuilder::loader).
///
/// Implemented for functions and for async closures without captures. The trait exists because the future of an
/// `AsyncFn(&str)` is not provably `Send` on stable Rust, and loads are spawned.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a loader of `{V}`",
    label = "not a loader",
    note = "a loader is `async |key: &str| -> Result<{V}, E>` without captures, an `async fn(&str)`, or a type that implements `Loader<{V}>`",
    note = "state that a closure would capture goes through `.loader_with(state, async |state: &S, key: &str| ...)`"
)]
pub trait LoadFn<'a, V>: Send + Sync {
    /// Output of the future.
    type Output: IntoLoadResult<V>;
    /// Future that the function returns.
    type Future: Future<Output = Self::Output> + Send + 'a;

    /// Calls the function.
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

/// [`LoadFn`] with a state, for [`loader_with`](crate::GroupBuilder::loader_with).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a loader of `{V}` with state `{S}`",
    note = "write `.loader_with(state, async |state: &{S}, key: &str| -> Result<{V}, E> {{ ... }})`"
)]
pub trait LoadFnWith<'a, S, V>: Send + Sync {
    /// Output of the future.
    type Output: IntoLoadResult<V>;
    /// Future that the function returns.
    type Future: Future<Output = Self::Output> + Send + 'a;

    /// Calls the function.
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

/// `Result` of a type that is [`IntoLoaded`], with any error.
pub trait IntoLoadResult<V> {
    /// Converts the result into the general form.
    fn into_load_result(self) -> Result<Loaded<V>, LoadError>;
}

impl<V, T: IntoLoaded<V>, E: Into<LoadError>> IntoLoadResult<V> for Result<T, E> {
    fn into_load_result(self) -> Result<Loaded<V>, LoadError> {
        self.map(T::into_loaded).map_err(Into::into)
    }
}

pub(crate) type LoadFuture<'a, V> = Pin<Box<dyn Future<Output = Result<Loaded<V>, LoadError>> + Send + 'a>>;

/// Object-safe loader, as a group holds it.
pub(crate) trait AnyLoader<V: Value>: Send + Sync + 'static {
    fn start<'a>(&'a self, load: Load<'a, V>) -> LoadFuture<'a, V>;
}

/// Type that implements [`Loader`], functions included.
pub(crate) struct Typed<L>(pub(crate) L);

impl<V: Value, L: Loader<V>> AnyLoader<V> for Typed<L> {
    fn start<'a>(&'a self, load: Load<'a, V>) -> LoadFuture<'a, V> {
        Box::pin(self.0.load(load))
    }
}

/// Function and its state.
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

/// Object-safe batch loader, as a group holds it.
pub(crate) trait AnyBatchLoader<V: Value>: Send + Sync + 'static {
    fn start<'a>(&'a self, keys: &'a [&'a str]) -> LoadManyFuture<'a, V>;
}

impl<V: Value, L: BatchLoader<V>> AnyBatchLoader<V> for L {
    fn start<'a>(&'a self, keys: &'a [&'a str]) -> LoadManyFuture<'a, V> {
        Box::pin(self.load_many(keys))
    }
}

pub(crate) type SharedBatchLoader<V> = Arc<dyn AnyBatchLoader<V>>;

/// Placeholder for the loader of a group with a batch loader, which is never called.
pub(crate) struct NoLoader;

impl<V: Value> AnyLoader<V> for NoLoader {
    fn start<'a>(&'a self, _: Load<'a, V>) -> LoadFuture<'a, V> {
        Box::pin(async { Err(LoadError::permanent("this group has a batch loader only")) })
    }
}
