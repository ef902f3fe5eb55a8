use std::time::{Duration, Instant};

use crate::Error;

const STEP: Duration = Duration::from_millis(2);

/// Polls `condition` until it holds, at most `deadline` long. Returns how long it took.
///
/// # Errors
/// [`Error::TimedOut`] naming `what`.
pub fn wait_until(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration, Error> {
    let start = Instant::now();
    wait_for(deadline, what, || condition().then(|| start.elapsed()))
}

/// Polls `probe` until it gives a value, at most `deadline` long.
///
/// # Errors
/// [`Error::TimedOut`] naming `what`.
pub fn wait_for<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            return Err(Error::TimedOut {
                what: what.to_owned(),
                waited: start.elapsed(),
            });
        }
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_what_it_waited_for() {
        let error = wait_until(Duration::from_millis(5), "the moon", || false).unwrap_err();
        assert!(error.to_string().contains("waiting for the moon"));
    }

    #[test]
    fn returns_the_value_of_the_first_success() {
        let mut calls = 0;
        let value = wait_for(Duration::from_secs(5), "three", || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(value.unwrap(), 3);
    }
}
