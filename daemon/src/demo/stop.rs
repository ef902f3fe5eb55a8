//! Waiting, and being interrupted while waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static STOPPED: AtomicBool = AtomicBool::new(false);
const STEP: Duration = Duration::from_millis(20);

/// From now on SIGINT, SIGTERM and SIGHUP do not end the process; they make every wait fail, and
/// what was built is removed on the way out.
pub(super) fn catch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the signal runtime")?;
    let mut signals = Vec::new();
    {
        let _entered = runtime.enter();
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            signals.push(signal(kind).context("cannot handle signals")?);
        }
    }
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let [interrupt, terminate, hangup] = &mut signals[..] else {
                    return;
                };
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    STOPPED.store(true, Ordering::SeqCst);
                }
            });
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

/// Whether somebody asked to stop.
pub(super) fn requested() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// Fails when somebody asked to stop.
pub(super) fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}

/// Asks `probe` until it gives a value, at most `deadline` long.
pub(super) fn wait<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        check()?;
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain for {what}", deadline.as_secs());
        }
        std::thread::sleep(STEP);
    }
}

/// Waits until somebody asks to stop.
pub(super) fn wait_for_request() {
    while !requested() {
        std::thread::sleep(STEP);
    }
}
