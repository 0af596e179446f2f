//! The example as Kubernetes runs it: checks of the manifests, and processes that run as the pods of the manifests.
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
