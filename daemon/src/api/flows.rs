//! Flow records: a query over the newest ones, or a stream of lines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use flowgraph::record::{FlowFilter, FlowRecord};
use futures_util::stream;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::error::Params;
use super::{Api, ApiError};
use crate::flow::FlowHub;

struct Query {
    follow: bool,
    last: Option<usize>,
    filter: FlowFilter,
}

fn parse(pairs: Vec<(String, String)>) -> Result<Query, ApiError> {
    let now = Timestamp::now();
    let mut query = Query {
        follow: false,
        last: None,
        filter: FlowFilter::default(),
    };
    for (name, value) in pairs {
        match name.as_str() {
            "follow" => {
                query.follow = value.parse().map_err(|_| {
                    ApiError::bad_request(format!("follow=`{value}`: use true or false"))
                })?;
            }
            "last" => {
                query.last = Some(value.parse().map_err(|_| {
                    ApiError::bad_request(format!("last=`{value}`: use a number of records"))
                })?);
            }
            _ => query
                .filter
                .add(&name, &value, now)
                .map_err(|error| ApiError::bad_request(error.to_string()))?,
        }
    }
    Ok(query)
}

pub(super) async fn flows(
    State(api): State<Api>,
    Params(pairs): Params<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let query = parse(pairs)?;
    if !query.follow {
        let records = select(api.hub.recent(), &query);
        let records: Vec<&FlowRecord> = records.iter().map(|record| &**record).collect();
        return Ok(Json(records).into_response());
    }
    // Followers see what is new, and what they asked to see of the past.
    let (recent, live) = api.hub.follow();
    let past = match query.last {
        Some(_) => select(recent, &query).into(),
        None => VecDeque::new(),
    };
    let follower = Follower {
        past,
        live,
        filter: query.filter,
        hub: api.hub.clone(),
        cancel: api.cancel.clone(),
        missed: 0,
    };
    let lines = stream::unfold(follower, |mut follower| async {
        let line = follower.line().await?;
        Some((Ok::<_, Infallible>(line), follower))
    });
    Ok((
        [(CONTENT_TYPE, "application/jsonl")],
        Body::from_stream(lines),
    )
        .into_response())
}

fn select(records: Vec<Arc<FlowRecord>>, query: &Query) -> Vec<Arc<FlowRecord>> {
    let mut records: Vec<_> = records
        .into_iter()
        .filter(|record| query.filter.matches(record))
        .collect();
    if let Some(last) = query.last {
        records.drain(..records.len().saturating_sub(last));
    }
    records
}

struct Follower {
    past: VecDeque<Arc<FlowRecord>>,
    live: broadcast::Receiver<Arc<FlowRecord>>,
    filter: FlowFilter,
    hub: Arc<FlowHub>,
    cancel: CancellationToken,
    /// Records this follower was too slow for, not told yet.
    missed: u64,
}

impl Follower {
    /// The next record as a line; `None` at the end of the daemon.
    async fn line(&mut self) -> Option<Bytes> {
        let record = match self.past.pop_front() {
            Some(record) => record,
            None => self.next().await?,
        };
        let missed = std::mem::take(&mut self.missed);
        let mut line = if missed == 0 {
            serde_json::to_vec(&*record)
        } else {
            let mut record = FlowRecord::clone(&record);
            record.observation.lost_events += missed;
            serde_json::to_vec(&record)
        }
        .expect("records are strings, numbers and lists of them");
        line.push(b'\n');
        Some(Bytes::from(line))
    }

    async fn next(&mut self) -> Option<Arc<FlowRecord>> {
        loop {
            let received = tokio::select! {
                () = self.cancel.cancelled() => return None,
                received = self.live.recv() => received,
            };
            match received {
                Ok(record) if self.filter.matches(&record) => return Some(record),
                Ok(_) => {}
                Err(RecvError::Lagged(count)) => {
                    self.missed += count;
                    self.hub.note_follower_lost(count);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
