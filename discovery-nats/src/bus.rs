//! Transport of announcements: plain messages on subjects, or keys of a bucket.

use std::time::Duration;

use async_nats::{Client, Message, connection::State};
use futures_util::{StreamExt, stream};
use groupcache_core::discovery::Me;
use tokio::time::timeout;

use crate::{announcement::Announcement, options::Nats, subjects::Subjects};

/// Maximum time for one publish. A client that is not connected puts messages into a queue, and blocks when the queue
/// is full.
const PUBLISH: Duration = Duration::from_millis(250);

/// Event from the subjects or from the bucket.
#[derive(Debug)]
pub(crate) enum Word {
    Alive(Announcement),
    Goodbye(Announcement),
    /// Question for the announcements of all nodes, with the subject for the answers.
    Question(Announcement, Option<String>),
    /// Deletion of a peer's key. The bucket does not report the incarnation.
    #[cfg(feature = "kv")]
    Gone(groupcache_core::PeerId),
    Garbage(&'static str),
    Nothing,
    /// Loss of the connection.
    Lost,
}

type Words = stream::BoxStream<'static, Message>;

pub(crate) struct Bus {
    client: Client,
    subjects: Subjects,
    messages: Words,
    connects: u64,
    #[cfg(feature = "kv")]
    bucket: Option<crate::kv::Bucket>,
    #[cfg(feature = "micro")]
    _service: Option<crate::micro::Service>,
}

impl Bus {
    pub(crate) async fn open(options: &Nats, client: Client, subjects: &Subjects, me: &Me) -> Result<Self, String> {
        let _ = (options, me); // read by optional features only
        #[cfg(feature = "kv")]
        let bucket = match &options.bucket {
            Some(name) => Some(crate::kv::Bucket::open(&client, name, options, me).await?),
            None => None,
        };
        #[cfg(feature = "kv")]
        let has_bucket = bucket.is_some();
        #[cfg(not(feature = "kv"))]
        let has_bucket = false;
        Ok(Self {
            connects: connects(&client),
            messages: if has_bucket { stream::empty().boxed() } else { listen(&client, subjects).await? },
            #[cfg(feature = "kv")]
            bucket,
            #[cfg(feature = "micro")]
            _service: match options.is_micro {
                true => Some(crate::micro::Service::start(&client, &options.application, me).await?),
                false => None,
            },
            client,
            subjects: subjects.clone(),
        })
    }

    /// Waits for the next event. Dropping the future loses no event.
    pub(crate) async fn next(&mut self) -> Word {
        #[cfg(feature = "kv")]
        if let Some(bucket) = &mut self.bucket {
            return bucket.next().await;
        }
        match self.messages.next().await {
            Some(message) => self.read(message),
            None => Word::Lost,
        }
    }

    fn read(&self, message: Message) -> Word {
        let subject = message.subject.as_str();
        let said = match Announcement::read(&message.payload) {
            Ok(said) => said,
            Err(why) => return Word::Garbage(why),
        };
        match subject {
            _ if subject == self.subjects.heartbeat || subject == self.subjects.answers => Word::Alive(said),
            _ if subject == self.subjects.goodbye => Word::Goodbye(said),
            _ if subject == self.subjects.query => Word::Question(said, message.reply.map(|to| to.to_string())),
            // A subject that a later release adds.
            _ => Word::Nothing,
        }
    }

    pub(crate) async fn announce(&mut self, said: &Announcement) {
        #[cfg(feature = "kv")]
        if let Some(bucket) = &mut self.bucket {
            return within(bucket.put(said)).await;
        }
        publish(&self.client, &self.subjects.heartbeat, None, said).await;
    }

    pub(crate) async fn ask(&mut self, said: &Announcement) {
        #[cfg(feature = "kv")]
        if let Some(bucket) = &mut self.bucket {
            within(bucket.put(said)).await;
            return bucket.read_again().await;
        }
        publish(&self.client, &self.subjects.query, Some(&self.subjects.answers), said).await;
    }

    pub(crate) async fn answer(&mut self, to: String, said: &Announcement) {
        publish(&self.client, &to, None, said).await;
    }

    /// Sends a goodbye. Returns true if nothing is left to wait for, and false if the server has the goodbye only once
    /// its echo arrives.
    pub(crate) async fn say_goodbye(&mut self, said: &Announcement) -> bool {
        #[cfg(feature = "kv")]
        if let Some(bucket) = &mut self.bucket {
            within(bucket.remove()).await;
            return true;
        }
        publish(&self.client, &self.subjects.goodbye, None, said).await;
        false
    }

    /// Returns whether the client is connected, and whether the connection is another one than at the previous call.
    pub(crate) fn look(&mut self) -> (bool, bool) {
        let connects = connects(&self.client);
        let is_new = connects != self.connects;
        self.connects = connects;
        (self.client.connection_state() == State::Connected, is_new)
    }
}

/// Subscribes to all messages of this cluster and to the answers for this node.
async fn listen(client: &Client, subjects: &Subjects) -> Result<Words, String> {
    let subscribe = async |subject: &str| {
        let subscribed = client.subscribe(subject.to_owned()).await;
        subscribed.map_err(|e| format!("cannot subscribe to {subject:?} ({e}); check the NATS server"))
    };
    let all = subscribe(&subjects.all).await?;
    let answers = subscribe(&subjects.answers).await?;
    Ok(stream::select(all, answers).boxed())
}

async fn publish(client: &Client, subject: &str, reply: Option<&str>, said: &Announcement) {
    if client.connection_state() != State::Connected {
        return;
    }
    let (subject, bytes) = (subject.to_owned(), said.write().into());
    within(async {
        let _ = match reply {
            Some(reply) => client.publish_with_reply(subject, reply.to_owned(), bytes).await,
            None => client.publish(subject, bytes).await,
        };
    })
    .await;
}

fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed)
}

/// Runs a publish for at most [`PUBLISH`]. A publish that takes longer is not repeated, because the next heartbeat
/// carries the same content.
async fn within(publishing: impl Future<Output = ()>) {
    let _ = timeout(PUBLISH, publishing).await;
}
