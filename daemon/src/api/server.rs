//! The Unix socket: bound with the right permissions from the first moment, removed at the end.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Who is at the other end of a connection, as the kernel says (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerCredentials {
    /// User id.
    pub uid: Option<u32>,
    /// Process id.
    pub pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for PeerCredentials {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(credentials) => Self {
                uid: Some(credentials.uid()),
                pid: credentials.pid(),
            },
            Err(_) => Self::default(),
        }
    }
}

/// A bound socket. Dropping it removes the file, if it is still this one.
#[derive(Debug)]
pub struct BoundSocket {
    listener: Option<std::os::unix::net::UnixListener>,
    path: PathBuf,
    inode: u64,
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, socket = %self.path.display(), "socket not removed");
        }
    }
}

/// Binds `path` with mode 0660, replacing what a dead daemon left behind. The socket is made under
/// another name and moved into place, so nobody can connect while its permissions are wider.
///
/// # Errors
/// A daemon answers on the socket, or the directory cannot be made or written.
pub fn bind(path: &Path) -> io::Result<BoundSocket> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another daemon answers on it",
        ));
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    if !directory.as_os_str().is_empty() {
        std::fs::create_dir_all(directory)?;
    }
    let file_name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names a directory"))?;
    let temporary = directory.join(format!(
        ".{}.{}",
        file_name.to_string_lossy(),
        std::process::id()
    ));
    let result = (|| {
        let listener = std::os::unix::net::UnixListener::bind(&temporary)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        let inode = std::fs::metadata(&temporary)?.ino();
        std::fs::rename(&temporary, path)?;
        Ok(BoundSocket {
            listener: Some(listener),
            path: path.to_owned(),
            inode,
        })
    })();
    if result.is_err() {
        // It may not have been made at all.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// Serves until cancelled; open requests are finished, streams end by the same token.
///
/// # Errors
/// When the socket cannot be waited on.
pub async fn serve(
    mut socket: BoundSocket,
    router: Router,
    cancel: CancellationToken,
) -> io::Result<()> {
    let listener = socket
        .listener
        .take()
        .ok_or_else(|| io::Error::other("the socket is served already"))?;
    let listener = UnixListener::from_std(listener)?;
    axum::serve(
        listener,
        router.into_make_service_with_connect_info::<PeerCredentials>(),
    )
    .with_graceful_shutdown(cancel.cancelled_owned())
    .await
}
