//! How messages travel: as plain messages on subjects, or through a bucket.

use std::time::Duration;

use async_nats::{Client, Message, connection::State};
use futures_util::{StreamExt, stream};
use groupcache_core::Me;
use tokio::time::timeout;

use crate::{announcement::Announcement, options::Nats, subjects::Subjects};

/// A client that is not connected takes messages into a queue, and then waits.
const PUBLISH: Duration = Duration::from_millis(250);

/// What was heard.
#[derive(Debug)]
pub(crate) enum Word {
    Alive(Announcement),
    Goodbye(Announcement),
    /// Somebody asks who is there, and where the answers should go.
    Question(Announcement, Option<String>),
    /// A peer has withdrawn what it announced; which life of it, nobody knows.
    #[cfg(feature = "kv")]
    Gone(groupcache_core::PeerId),
    Garbage(&'static str),
    Nothing,
    /// The connection is gone.
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
        let _ = (options, me); // what only the features read
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

    /// Waits for the next word; dropping the future loses none.
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
            // Of a later release.
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

    /// Tells whether the server is known to have it; if not, it has it when it comes back.
    pub(crate) async fn say_goodbye(&mut self, said: &Announcement) -> bool {
        #[cfg(feature = "kv")]
        if let Some(bucket) = &mut self.bucket {
            within(bucket.remove()).await;
            return true;
        }
        publish(&self.client, &self.subjects.goodbye, None, said).await;
        false
    }

    /// Whether there is a connection now, and whether it is another than at the last look.
    pub(crate) fn look(&mut self) -> (bool, bool) {
        let connects = connects(&self.client);
        let is_new = connects != self.connects;
        self.connects = connects;
        (self.client.connection_state() == State::Connected, is_new)
    }
}

/// Everything that is said in this cluster, and what is said to this node.
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

/// What takes longer than it may is not repeated: the next heartbeat says the same.
async fn within(publishing: impl Future<Output = ()>) {
    let _ = timeout(PUBLISH, publishing).await;
}
