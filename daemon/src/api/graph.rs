//! The service graph.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use flowgraph::graph::ServiceGraph;
use serde::Deserialize;

use super::error::Params;
use super::{Api, ApiError};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    #[serde(default)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Dot,
    Mermaid,
    Svg,
}

pub(super) async fn graph(
    State(api): State<Api>,
    Params(query): Params<Query>,
) -> Result<Response, ApiError> {
    let edges = api.learning.edges().await.ok_or_else(ApiError::stopping)?;
    let drawn = tokio::task::spawn_blocking(move || {
        let graph = ServiceGraph::from_edges(&edges);
        match query.format {
            Format::Json => Json(graph.document()).into_response(),
            Format::Dot => text("text/vnd.graphviz", graph.to_dot()),
            Format::Mermaid => text("text/plain; charset=utf-8", graph.to_mermaid()),
            Format::Svg => text("image/svg+xml", graph.to_svg()),
        }
    });
    drawn
        .await
        .map_err(|error| ApiError::internal(error.to_string()))
}

fn text(content_type: &'static str, body: String) -> Response {
    ([(CONTENT_TYPE, content_type)], body).into_response()
}
