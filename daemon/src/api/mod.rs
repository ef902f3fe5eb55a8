//! The API: JSON over a Unix socket, for the command line and everything else.
//!
//! It owns no state: requests become commands to the controller, and answers come from snapshots.
//! It runs on a runtime of its own, so that a slow or hostile client cannot delay the reader.

pub mod dto;
mod error;
mod explain;
mod flows;
mod graph;
mod inventory;
mod modes;
mod policies;
mod server;
mod status;
mod suggest;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::routing::{get, post};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::controller::estate::EstateSync;
use crate::controller::{Caller, ControlError, Controller};
use crate::flow::{FlowHub, Learning};
use crate::preflight::Places;
use crate::store::Store;
use crate::workload::registry::RegistryHandle;

pub use error::ApiError;
pub use policies::check_documents;
pub use server::{BoundSocket, PeerCredentials, bind, serve};
pub use suggest::suggest;

/// Largest request body: ten thousand policies.
const BODY_LIMIT: usize = 32 << 20;

/// What requests are answered from.
#[derive(Clone, Debug)]
pub struct Api {
    /// The owner of what is in force.
    pub controller: Controller,
    /// Brings a new estate into force.
    pub estate: EstateSync,
    /// Workloads.
    pub registry: RegistryHandle,
    /// Recent and live flow records.
    pub hub: Arc<FlowHub>,
    /// Learned edges.
    pub learning: Learning,
    /// The state database.
    pub store: Store,
    /// Where the daemon lives, for `doctor`.
    pub places: Places,
    /// When the daemon started.
    pub started: Timestamp,
    /// The first state is in force.
    pub ready: watch::Receiver<bool>,
    /// The daemon is shutting down: streams end.
    pub cancel: CancellationToken,
    /// One inventory at a time.
    pub inventory_lock: Arc<tokio::sync::Mutex<()>>,
}

/// Every route.
pub fn router(api: Api) -> Router {
    let v1 = Router::new()
        .route("/status", get(status::status))
        .route("/workloads", get(status::workloads))
        .route("/groups", get(status::groups))
        .route("/counters", get(status::counters))
        .route("/doctor", get(status::doctor))
        .route("/history", get(status::history))
        .route("/modes", get(modes::get_modes).post(modes::set_mode))
        .route("/modes/confirm", post(modes::confirm))
        .route("/modes/revert", post(modes::revert))
        .route("/policies", get(policies::list))
        .route("/policies/apply", post(policies::apply))
        .route("/policies/replace", post(policies::replace))
        .route("/policies/delete", post(policies::delete))
        .route("/policies/check", post(policies::check))
        .route("/policies/explain", get(explain::explain_flow))
        .route("/policies/suggest", get(suggest::suggest_policies))
        .route("/policies/export", get(suggest::export))
        .route("/policies/{namespace}/{name}", get(policies::show))
        .route("/inventory", get(inventory::show))
        .route("/inventory/apply", post(inventory::apply))
        .route("/flows", get(flows::flows))
        .route("/graph", get(graph::graph));
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(status::readyz))
        .nest("/api/v1", v1)
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(api)
}

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
struct From(Caller);

impl<S: Send + Sync> FromRequestParts<S> for From {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let peer = parts
            .extensions
            .get::<axum::extract::ConnectInfo<PeerCredentials>>();
        Ok(Self(Caller {
            uid: peer.and_then(|peer| peer.0.uid),
        }))
    }
}

impl std::convert::From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        use axum::http::StatusCode;
        let status = match &error {
            ControlError::Parse(_) | ControlError::Empty => StatusCode::BAD_REQUEST,
            ControlError::UnknownPolicy(_) | ControlError::UnknownGroup { .. } => {
                StatusCode::NOT_FOUND
            }
            ControlError::Pending | ControlError::NothingPending => StatusCode::CONFLICT,
            ControlError::Compile(_) | ControlError::Enforce(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ControlError::Store(_) | ControlError::Torn { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            ControlError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut answer = Self::new(status, error.to_string()).details(error.details());
        answer.body.hint = error.hint();
        answer
    }
}

#[cfg(test)]
mod tests;
