//! Work that takes the processor for long, on a thread of its own, so that the threads of the runtime serve requests
//! meanwhile.

use std::{sync::Arc, thread};

use tokio::sync::oneshot;

/// Does the work on a thread of its own, or here if no thread can be started. In a simulation and in interleavings the
/// work is done here, because the order of threads is not part of them.
///
/// Dropping the future leaves the work to its thread, which ends with it.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl Fn() -> T + Send + Sync + 'static) -> T {
    let work = Arc::new(work);
    if !cfg!(any(simulation, shuttle)) {
        let (tell, done) = oneshot::channel();
        let on_thread = Arc::clone(&work);
        let started = thread::Builder::new().name("groupcache-work".to_owned()).spawn(move || {
            let _ = tell.send(on_thread()); // nobody waits any more once the node has ended
        });
        if started.is_ok()
            && let Ok(value) = done.await
        {
            return value;
        }
    }
    work()
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_on_another_thread() {
        assert_ne!(off_thread(|| thread::current().id()).await, thread::current().id());
    }
}
