//! What the service answers to gRPC health checks (`grpc.health.v1.Health`), on the port of its users.
//!
//! Not on the port of its peers: that one speaks TLS as soon as there is a cluster key, and the probes of Kubernetes
//! do not.
use axum::Router;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};

/// Whether this process is to be sent requests, as `/readyz` says it. The empty name is what is asked by default.
const READINESS: [&str; 2] = ["readiness", ""];
/// Whether it is to be left running, as `/healthz` says it.
const LIVENESS: &str = "liveness";

/// What health checks are told.
pub(crate) struct Health(HealthReporter);

impl Health {
    /// One that lives and is not ready yet, and the pages that say so.
    pub(crate) async fn new() -> (Self, Router) {
        let (reporter, server) = health_reporter();
        let health = Self(reporter);
        health.0.set_service_status(LIVENESS, ServingStatus::Serving).await;
        health.is_ready(false).await;
        (health, Router::new().route_service("/grpc.health.v1.Health/{method}", server))
    }

    pub(crate) async fn is_ready(&self, is_ready: bool) {
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in READINESS {
            self.0.set_service_status(name, status).await;
        }
    }

    /// Ends the checks that wait for news: they would keep their connections open.
    pub(crate) async fn close(mut self) {
        for name in READINESS.into_iter().chain([LIVENESS]) {
            self.0.clear_service_status(name).await;
        }
    }
}
