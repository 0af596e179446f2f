//! JetStream key-value bucket as the store of members: one key per node, written again at each heartbeat.

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
use groupcache_core::{PeerId, discovery::Me};

use crate::{
    announcement::{Announcement, MAX_BYTES},
    bus::Word,
    options::Nats,
    subjects::{token, untoken},
};

/// Time for which the server keeps the marker of a deleted key.
const MARKERS: Duration = Duration::from_secs(60);
/// Maximum time for the server to answer a request.
const REQUEST: Duration = Duration::from_secs(2);

/// Keys of one cluster in the bucket.
pub(crate) struct Bucket {
    store: Store,
    /// Prefix of the keys: `application.cluster.`
    prefix: String,
    me: PeerId,
    watch: Watch,
    /// Revision of this node's last put. A removal deletes this revision, and none that is newer.
    revision: Option<u64>,
    /// Time of this node's last put, by the clock of the server.
    written: Option<DateTime>,
}

impl Bucket {
    pub(crate) async fn open(client: &Client, name: &str, options: &Nats, me: &Me) -> Result<Self, String> {
        // Servers before 2.11 send no event when a key expires.
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
                context.create_key_value(config).await.map_err(|e| cannot("create", &e))?
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
        let Some(id) = id else { return Word::Garbage("the key of the message is not a peer id") };
        match entry.operation {
            Operation::Put => match Announcement::read(&entry.value) {
                Ok(said) if said.id == id && !self.is_left_over(entry, &said) => Word::Alive(said),
                Ok(said) if said.id == id => Word::Nothing,
                Ok(_) => Word::Garbage("the key of the message belongs to another peer"),
                Err(why) => Word::Garbage(why),
            },
            Operation::Delete => Word::Gone(id),
            // The key was not written for the maximum age of keys. The event needs no action, because the table of
            // peers expires the peer too, unless this node has received nothing either. A server that was down itself
            // purges the keys of all peers.
            Operation::Purge => Word::Nothing,
        }
    }

    /// Returns whether an entry has outlived its node. A bucket that somebody else has created may keep keys for
    /// longer. The age of an entry is measured from this node's own last entry, which is recorded here.
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

    /// Reads all keys again, and continues to watch from there. The key that this node has just put gives the age of
    /// the others.
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
