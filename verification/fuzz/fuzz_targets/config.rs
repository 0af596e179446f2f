#![no_main]

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

/// Runtime for the providers of files and of Kubernetes, which may need one when they are built.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_all().build().unwrap());

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _entered = RUNTIME.enter();
    groupcache_discovery::fuzz::config(bytes);
});
