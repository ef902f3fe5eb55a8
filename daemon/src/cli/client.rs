//! A client of the daemon's Unix socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::error::CliError;
use crate::api::dto::ErrorBody;

/// Largest answer that is read as one value.
const ANSWER_LIMIT: usize = 1 << 30;

/// Talks to one daemon; every request has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// `GET path`, the answer as a value.
    ///
    /// # Errors
    /// The daemon's own error, or why it cannot be reached.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let response = self.send(Method::GET, path, None).await?;
        self.value(path, response).await
    }

    /// `GET path`, the answer as text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_text(&self, path: &str) -> Result<String, CliError> {
        let response = self.send(Method::GET, path, None).await?;
        let body = self.body(response).await?;
        String::from_utf8(body.to_vec())
            .map_err(|_| CliError::new(format!("the daemon's answer to {path} is no text")))
    }

    /// `POST path` with a JSON body, the answer as a value.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| CliError::new(format!("cannot write the request: {error}")))?;
        let response = self.send(Method::POST, path, Some(body)).await?;
        self.value(path, response).await
    }

    /// `GET path`, calling `line` for each line as it arrives.
    ///
    /// # Errors
    /// As [`Client::get`], and every error of `line`.
    pub async fn lines(
        &self,
        path: &str,
        mut line: impl FnMut(&str) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let response = self.send(Method::GET, path, None).await?;
        let mut body = self.successful(response).await?.into_body();
        let mut pending: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.interrupted(&error))?;
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            pending.extend_from_slice(bytes);
            let mut start = 0;
            while let Some(length) = pending[start..].iter().position(|&byte| byte == b'\n') {
                let text = String::from_utf8_lossy(&pending[start..start + length]);
                line(&text)?;
                start += length + 1;
            }
            pending.drain(..start);
        }
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, CliError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.interrupted(&error))?;
        // The connection drives itself until the response is read or dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the daemon");
            }
        });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "portcullis");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| CliError::new(format!("cannot make the request {path}: {error}")))?;
        sender
            .send_request(request)
            .await
            .map_err(|error| self.interrupted(&error))
    }

    async fn value<T: DeserializeOwned>(
        &self,
        path: &str,
        response: Response<Incoming>,
    ) -> Result<T, CliError> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::new(format!("the daemon's answer to {path} is unknown: {error}"))
                .hint("use the same version of the command and the daemon")
        })
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, CliError> {
        let response = self.successful(response).await?;
        collect(response)
            .await
            .map_err(|error| self.interrupted(&*error))
    }

    /// The response itself if it is one of success, else the error in it.
    async fn successful(
        &self,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, CliError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = collect(response)
            .await
            .map_err(|error| self.interrupted(&*error))?;
        Err(error_of(status, &body))
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let socket = self.socket.display();
        let failed = CliError::new(format!("cannot reach the daemon on {socket}: {error}"));
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                failed.hint("start it with `portcullis run`, or name its socket with --socket")
            }
            ErrorKind::PermissionDenied => {
                failed.hint("use an account that may read and write the socket (root or its group)")
            }
            _ => failed,
        }
    }

    fn interrupted(&self, error: &dyn std::error::Error) -> CliError {
        CliError::new(format!(
            "the daemon on {} ended the connection: {error}",
            self.socket.display()
        ))
        .hint("see its log")
    }
}

async fn collect(
    response: Response<Incoming>,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(
        http_body_util::Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await?
            .to_bytes(),
    )
}

fn error_of(status: StatusCode, body: &[u8]) -> CliError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => CliError {
            hint: body.hint,
            ..CliError::new(body.error).details(body.details)
        },
        Err(_) => CliError::new(format!("the daemon answered {status}")).hint("see its log"),
    }
}

/// Percent-encodes a query value (RFC 3986: everything but unreserved characters).
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Builds a path with a query.
#[derive(Clone, Debug)]
pub struct Query {
    text: String,
    first: bool,
}

impl Query {
    /// A path without a query.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self {
            text: path.to_owned(),
            first: true,
        }
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.text.push(if self.first { '?' } else { '&' });
        self.first = false;
        self.text.push_str(name);
        self.text.push('=');
        self.text.push_str(&encode(value.as_ref()));
        self
    }

    /// Adds a parameter if there is a value.
    #[must_use]
    pub fn with_some<V: AsRef<str>>(self, name: &str, value: Option<V>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The path with its query.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let query = Query::new("/x")
            .with("from", "shop/web 1&")
            .with_some("to", None::<&str>)
            .with_some("port", Some("80"));
        assert_eq!(query.as_str(), "/x?from=shop%2Fweb%201%26&port=80");
    }

    #[test]
    fn a_body_that_is_no_error_still_gives_one() {
        let error = error_of(StatusCode::BAD_GATEWAY, b"<html>");
        assert!(error.message.contains("502"), "{}", error.message);
        assert_eq!(error.code, 1);
    }
}
