//! A JetStream key-value bucket as the store of members: one key for each node, written again at each heartbeat.

use std::time::Duration;

use async_nats::{
    Client,
    datetime::DateTime,
    jetstream::{
        self,
        kv::{Config, Entry, Operation, Store, Watch},
        stream::StorageType,
    },
};
use futures_util::StreamExt;
use groupcache_core::{Me, PeerId};

use crate::{
    announcement::{Announcement, MAX_BYTES},
    bus::Word,
    options::Nats,
    subjects::{token, untoken},
};

/// Removed keys are told of for as long.
const MARKERS: Duration = Duration::from_secs(60);
/// How long the server may take to answer.
const REQUEST: Duration = Duration::from_secs(2);

/// The keys of one cluster in the bucket.
pub(crate) struct Bucket {
    store: Store,
    /// `application.cluster.`
    prefix: String,
    me: PeerId,
    watch: Watch,
    /// Of what this node wrote last: it removes that and nothing newer.
    revision: Option<u64>,
    /// When that was, by the server's clock.
    written: Option<DateTime>,
}

impl Bucket {
    pub(crate) async fn open(client: &Client, name: &str, options: &Nats, me: &Me) -> Result<Self, String> {
        // Before that a key that expires is an event for nobody.
        if !client.is_server_compatible(2, 11, 0) {
            return Err(format!(
                "the NATS server is version {}, and the key-value bucket {name:?} needs 2.11 or newer; leave the bucket out of the options, or update the server",
                client.server_info().version
            ));
        }
        let mut context = jetstream::new(client.clone());
        context.set_timeout(REQUEST);
        let cannot = |what: &str, e: &dyn std::fmt::Display| {
            format!(
                "cannot {what} the key-value bucket {name:?} ({e}); check that JetStream is on and that the account may use it"
            )
        };
        let store = match context.get_key_value(name).await {
            Ok(store) => store,
            Err(_) => {
                let config = Config {
                    bucket: name.to_owned(),
                    description: "members of groupcache clusters".to_owned(),
                    max_value_size: i32::try_from(MAX_BYTES).unwrap_or(i32::MAX),
                    history: 1,
                    max_age: options.pace.ttl.max(Duration::from_secs(1)),
                    storage: StorageType::Memory,
                    num_replicas: 1,
                    limit_markers: Some(MARKERS),
                    ..Config::default()
                };
                context.create_key_value(config).await.map_err(|e| cannot("make", &e))?
            }
        };
        let prefix = format!("{}.{}.", token(&options.application), token(&me.cluster));
        let watch = store.watch_with_history(format!("{prefix}>")).await.map_err(|e| cannot("watch", &e))?;
        Ok(Self { store, prefix, me: me.id.clone(), watch, revision: None, written: None })
    }

    pub(crate) async fn next(&mut self) -> Word {
        match self.watch.next().await {
            Some(Ok(entry)) => self.read(&entry),
            Some(Err(_)) | None => Word::Lost,
        }
    }

    fn read(&mut self, entry: &Entry) -> Word {
        let id = entry.key.strip_prefix(&self.prefix).and_then(untoken).and_then(|id| PeerId::new(id).ok());
        let Some(id) = id else { return Word::Garbage("its key is no name of a peer") };
        match entry.operation {
            Operation::Put => match Announcement::read(&entry.value) {
                Ok(said) if said.id == id && !self.is_left_over(entry, &said) => Word::Alive(said),
                Ok(said) if said.id == id => Word::Nothing,
                Ok(_) => Word::Garbage("its key is another peer's"),
                Err(why) => Word::Garbage(why),
            },
            Operation::Delete => Word::Gone(id),
            // The server has not heard of it for as long as keys live. So have we not, if we have heard anything at
            // all; a server that was down itself tells the same of everybody.
            Operation::Purge => Word::Nothing,
        }
    }

    /// A bucket that somebody else has made may keep keys for longer than their nodes live.
    fn is_left_over(&mut self, entry: &Entry, said: &Announcement) -> bool {
        if said.id == self.me {
            self.written = Some(entry.created);
        }
        self.written.is_some_and(|now| entry.created + said.ttl <= now)
    }

    pub(crate) async fn put(&mut self, said: &Announcement) {
        if let Ok(revision) = self.store.put(self.key(), said.write().into()).await {
            self.revision = Some(revision);
        }
    }

    pub(crate) async fn remove(&mut self) {
        if let Some(revision) = self.revision {
            let _ = self.store.delete_expect_revision(self.key(), Some(revision)).await;
        }
    }

    /// Reads all keys again; the watch goes on from there. What this node has put just now tells how old they are.
    pub(crate) async fn read_again(&mut self) {
        if let Ok(Some(own)) = self.store.entry(self.key()).await {
            self.written = Some(own.created);
        }
        if let Ok(watch) = self.store.watch_with_history(format!("{}>", self.prefix)).await {
            self.watch = watch;
        }
    }

    fn key(&self) -> String {
        format!("{}{}", self.prefix, token(self.me.as_str()))
    }
}
