//! Reads of files that may never answer: a pipe without a writer, a network file system without its server.
//!
//! A read runs on a thread of its own, because a runtime that ends waits for the threads of `spawn_blocking`, and a
//! worker that blocks stalls its tasks. A read that does not end costs its thread and nothing else.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

use crate::runtime::sync::Mutex;

/// Maximum time for a file to answer. A start that reads three files still ends within seconds.
const ANSWER: Duration = Duration::from_secs(2);

/// Maximum number of threads that read one path, so that a file that hangs and is read again and again costs four
/// threads.
const READERS: usize = 4;

/// Places of the threads that read, by path.
static PLACES: LazyLock<Mutex<BTreeMap<PathBuf, Arc<Semaphore>>>> = LazyLock::new(Mutex::default);

/// Reads a whole regular file of at most `max_bytes` bytes, or the file that a symbolic link leads to.
///
/// # Errors
/// An error if the file cannot be read, is a pipe, a device or a folder, is longer than the limit, or does not answer
/// within 2 s.
///
/// # Cancellation
/// A dropped future leaves the read to its thread, which ends with it.
pub async fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    detached(&path.clone(), ANSWER, move || read_now(&path, max_bytes)).await?
}

/// Runs work that may block for ever, such as a library's read of `path`, on a thread of its own.
///
/// # Errors
/// An error if the work has not ended within `limit`, or if no thread can be started.
pub async fn detached<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let late =
        |_| io::Error::new(io::ErrorKind::TimedOut, format!("it does not answer within {} s", limit.as_secs_f32()));
    let places = {
        let mut all = PLACES.lock();
        all.retain(|_, places| Arc::strong_count(places) > 1);
        Arc::clone(all.entry(path.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(READERS))))
    };
    let run = async {
        let place = places.acquire_owned().await.map_err(io::Error::other)?;
        let (tell, done) = oneshot::channel();
        let thread = std::thread::Builder::new().name("groupcache-file".to_owned());
        thread.spawn(move || {
            let _ = tell.send(work());
            drop(place);
        })?;
        done.await.map_err(|_| io::Error::other("its reader panicked"))
    };
    timeout(limit, run).await.map_err(late)?
}

fn read_now(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    // The open of a pipe would wait for a writer, and that of a device may do anything.
    check(&fs::metadata(path)?)?;
    let file = fs::File::open(path)?;
    check(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {max_bytes} bytes")));
    }
    Ok(bytes)
}

fn check(found: &fs::Metadata) -> io::Result<()> {
    let what = match found.is_file() {
        true => return Ok(()),
        false if found.is_dir() => "a folder",
        false => "a pipe, a socket or a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what} and not a regular file")))
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Checks that work that blocks ends in an error, and that its runtime ends without waiting for it.
    #[test]
    fn work_that_hangs_is_an_error_and_holds_no_runtime() {
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(std::sync::Mutex::new(blocked));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // More attempts than threads: the later ones find no place, and end as well.
            let attempts = (0..READERS + 2).map(|_| {
                let blocked = Arc::clone(&blocked);
                let hang = move || _ = blocked.lock().map(|blocked| blocked.recv());
                detached(Path::new("/hangs"), Duration::from_millis(50), hang)
            });
            for ended in futures_util::future::join_all(attempts).await {
                assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
            let other = detached(Path::new("/answers"), Duration::from_secs(30), || 7).await;
            assert_eq!(other.unwrap(), 7, "another path has threads of its own");
        });
        drop(runtime); // returns although the threads still wait
        drop(release);
    }

    #[tokio::test]
    async fn only_regular_files_within_the_limit_are_read() {
        let folder = std::env::temp_dir().join(format!("groupcache-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, pipe, link) = (folder.join("file"), folder.join("pipe"), folder.join("link"));
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(read(&link, 4).await.unwrap(), b"text");
        assert_eq!(read(&file, 3).await.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for other in [&pipe, &folder, Path::new("/dev/zero")] {
            let error = read(other, 4).await.unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
