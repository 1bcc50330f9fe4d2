//! Python while the engine takes its time. In: work that may wait for storage. Out: what it gave, or the signal that ended
//! it; meanwhile what is waited for goes to Python's log. Apart, since indexing and rendering wait alike.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::fetch::{retry, waits};

/// Signals of the interpreter (Ctrl-C) are looked at this often.
pub const SLICE: Duration = Duration::from_millis(50);

/// Raises what a signal's handler raised, and logs what is due.
pub fn attend(py: Python<'_>) -> PyResult<()> {
    py.check_signals()?;
    tell(py)
}

/// Logs what is due of storage that is waited for.
pub fn tell(py: Python<'_>) -> PyResult<()> {
    if let Some(line) = waits::news() {
        py.import("logging")?
            .call_method1("getLogger", ("navit_loader.storage",))?
            .call_method1("warning", ("%s", line))?;
    }
    Ok(())
}

/// Works on a thread of its own while this one attends; its waits end with the first signal.
pub fn attended<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let end = Arc::new(AtomicBool::new(false));
    py.detach(|| {
        thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            let end = &end;
            let worker = scope.spawn(move || drop(send.send(retry::until(end, work))));
            loop {
                match receive.recv_timeout(SLICE) {
                    Ok(done) => return Python::attach(tell).map(|()| done),
                    Err(RecvTimeoutError::Timeout) => Python::attach(attend).inspect_err(|_| {
                        end.store(true, Ordering::Release);
                    })?,
                    Err(RecvTimeoutError::Disconnected) => {
                        let panic = worker.join().err().unwrap_or_else(|| Box::new("no answer"));
                        resume_unwind(panic)
                    }
                }
            }
        })
    })
}

/// What this process has to do with its storage: `retries`, attempts after a first one so far; `waiting`, reads that are
/// waited for now.
#[pyfunction]
fn storage(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let (retries, waiting) = waits::counts();
    let counts = PyDict::new(py);
    counts.set_item("retries", retries)?;
    counts.set_item("waiting", waiting)?;
    Ok(counts)
}

/// Logs what storage is waited for, where that is due; for whoever waits in a loop of its own.
#[pyfunction]
fn storage_news(py: Python<'_>) -> PyResult<()> {
    tell(py)
}

/// Adds this file's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(storage, m)?)?;
    m.add_function(wrap_pyfunction!(storage_news, m)?)
}
