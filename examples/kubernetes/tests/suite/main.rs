//! The example as Kubernetes runs it: its manifests, and pods that are started as they say.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, helpers included, that drives processes from outside in real time"
)]

mod compose;
mod manifests;
mod minikube;
mod pods;
mod support;
