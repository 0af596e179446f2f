//! Provider of peers from a file, which is read again when it changes.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use groupcache_core::{
    async_trait,
    discovery::{Health, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
    environment::trimmed,
    files,
};

use crate::list::peer;

/// Default time between two checks of the file.
const LOOK: Duration = Duration::from_secs(1);
/// Time after which a changed file is read once more, because a file that is being written must not be taken halfway.
const SETTLE: Duration = Duration::from_millis(100);
/// Maximum size of the file, many times what 2,000 peers take.
const MAX_BYTES: u64 = 1 << 20;

/// Provider of the peers in the lines of a file, which is read again when it changes.
///
/// A line holds peers as in a list of [`Static`](crate::Static) (`host:port` or `id@host:port`, one or several with
/// commas). White space, a byte order mark, empty lines and the text after a `#` are ignored. The file is checked every second, and
/// whenever the node doubts a set.
///
/// A file that cannot be read, or with a line that is not a list of peers, keeps the whole last set, and the log names
/// the line. The safe way to change a file is to rename another file over it. A file that is written in place is taken
/// when it has stopped changing. A file of 0 bytes counts as one that is about to be written, so that a file without
/// peers must hold a comment.
///
/// ```
/// use discovery_static::File;
/// use groupcache_core::Node;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join(format!("groupcache-doc-{}", std::process::id()));
/// std::fs::write(&path, "# peers\na@10.0.0.7:7946\nb@10.0.0.8:7946\n")?;
/// # std::fs::write(&path, "# nobody\n")?;
/// let node = Node::builder().provider(File::new(&path)).start().await?;
/// # node.shutdown().await?; std::fs::remove_file(&path)?; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
    every: Duration,
}

impl File {
    /// Returns a provider for that file, which may be written later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), every: LOOK }
    }

    /// Sets the time between two checks of the file. Default: 1 s. Range: at least 10 ms.
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval.max(Duration::from_millis(10));
        self
    }
}

#[async_trait]
impl Provider for File {
    fn name(&self) -> &str {
        "file"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut taken: Option<Vec<u8>> = None;
        let mut said = None;
        let mut is_asked = false;
        loop {
            let look = look(&self.path, &taken);
            let looked = tokio::select! {
                biased;
                looked = look => looked,
                () = cx.leaving() => return Ok(()),
            };
            let health = match looked {
                Ok(Looked::Same) if is_asked => {
                    // The unchanged peers are published again, as the answer to the node.
                    taken.as_deref().map_or(Ok(Vec::new()), |text| peers(&self.path, text)).map(Some)
                }
                Ok(Looked::Same) => Ok(None),
                Ok(Looked::Changed(text)) => match peers(&self.path, &text) {
                    Ok(peers) => {
                        taken = Some(text);
                        Ok(Some(peers))
                    }
                    Err(why) => Err(why),
                },
                Err(why) => Err(why),
            };
            let health = match health {
                Ok(peers) => {
                    if let Some(peers) = peers {
                        cx.publish(PeerSet::complete(peers));
                    }
                    Health::Connected
                }
                Err(why) => Health::Stale(why),
            };
            if said.as_ref() != Some(&health) {
                cx.report(health.clone());
                said = Some(health);
            }
            is_asked = match cx.next_within(self.every).await {
                Some(Signal::Leaving) => return Ok(()),
                Some(Signal::Resolve(_)) => true,
                Some(Signal::MeChanged) | None => false,
            };
        }
    }
}

enum Looked {
    Same,
    Changed(Vec<u8>),
}

/// Reads the file, and compares its content with `taken`. Times and length are a weaker sign of a change, and the
/// content is small.
async fn look(path: &Path, taken: &Option<Vec<u8>>) -> Result<Looked, String> {
    let mut text = read(path).await?;
    if taken.as_ref() == Some(&text) {
        return Ok(Looked::Same);
    }
    loop {
        tokio::time::sleep(SETTLE).await;
        let again = read(path).await?;
        if again == text {
            break;
        }
        text = again;
    }
    if text.is_empty() {
        return Err(format!("{} is empty; if there are no peers, write a line that begins with #", path.display()));
    }
    Ok(Looked::Changed(text))
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, MAX_BYTES).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::FileTooLarge => {
            format!("{} is longer than {MAX_BYTES} bytes; check that it is a list of peers", path.display())
        }
        _ => format!("{} cannot be read ({e}); check that it exists and is a regular file", path.display()),
    })
}

fn peers(path: &Path, text: &[u8]) -> Result<Vec<Peer>, String> {
    let mut peers = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let at = |why: &dyn fmt::Display| format!("{} line {}: {why}", path.display(), number + 1);
        let line = std::str::from_utf8(line).map_err(|e| at(&e))?;
        let line = line.split('#').next().unwrap_or_default();
        for item in line.split(',').map(trimmed).filter(|item| !item.is_empty()) {
            peers.push(peer(item).map_err(|e| at(&e))?);
        }
    }
    Ok(peers)
}
