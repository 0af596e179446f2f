//! Health: answers gRPC health checks (`grpc.health.v1.Health`) on the port for users.
//!
//! The port for peers cannot serve the checks, because with a cluster key it speaks TLS and the probes of Kubernetes do
//! not.
use axum::Router;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};

/// Names of the service that reports the same as `/readyz`. Checks without a name ask for the empty one.
const READINESS: [&str; 2] = ["readiness", ""];
/// Name of the service that reports the same as `/healthz`.
const LIVENESS: &str = "liveness";

/// Status that health checks receive.
pub(crate) struct Health(HealthReporter);

impl Health {
    /// Returns the status of a process that is live and not ready yet, and the router that answers the checks.
    pub(crate) async fn new() -> (Self, Router) {
        let (reporter, server) = health_reporter();
        let health = Self(reporter);
        health.0.set_service_status(LIVENESS, ServingStatus::Serving).await;
        health.is_ready(false).await;
        (health, Router::new().route_service("/grpc.health.v1.Health/{method}", server))
    }

    /// Sets the status of readiness.
    pub(crate) async fn is_ready(&self, is_ready: bool) {
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in READINESS {
            self.0.set_service_status(name, status).await;
        }
    }

    /// Ends the checks that watch a status. Otherwise they would keep their connections open.
    pub(crate) async fn close(mut self) {
        for name in READINESS.into_iter().chain([LIVENESS]) {
            self.0.clear_service_status(name).await;
        }
    }
}
