//! Faults that may pass, waited out. In: a read, and for how long it is tried. Out: what it gave in the end. Here alone
//! is said what may pass, and when it is tried again: for files and for objects, while indexing and while rendering.
//!
//! A read is many calls deep, and some of them know nothing of us (Parquet's reader), so what ends a wait is known by
//! thread.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::waits::{Waiting, tried_again};
use crate::failure::{Failure, Fault, Reason};

/// For how long a read is tried where nobody has said how often.
const TIME: Duration = Duration::from_secs(60);
/// Pauses double from the first to the longest, each cut at random by up to a half, so that those who were refused
/// together do not come back together.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A wait looks this often whether it is to end.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// For how long a read is tried.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    attempts: Option<u32>,
    time: Duration,
}

impl Patience {
    /// So many attempts after the first; None for as many as a minute allows.
    pub fn new(attempts: Option<u32>) -> Self {
        Self { attempts, time: if attempts.is_some() { Duration::MAX } else { TIME } }
    }

    /// The time left after so many attempts, None where there is none.
    fn left(self, attempts: u32, since: Instant) -> Option<Duration> {
        let left = self.time.checked_sub(since.elapsed()).filter(|left| !left.is_zero())?;
        self.attempts.is_none_or(|more| attempts <= more).then_some(left)
    }
}

/// What a server said that asks not to be asked for a while (`Retry-After`).
#[derive(Clone, Debug)]
pub(crate) struct Busy {
    pub(crate) said: String,
    pub(crate) after: Duration,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl std::error::Error for Busy {}

/// What the system said, as a fault: gone for every replica, refused to us, or one that may pass.
pub fn fault(e: &io::Error) -> Fault {
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
            Failure::fetch(Reason::Missing, e.to_string()).into()
        }
        // One of our own says more than the system's.
        ErrorKind::UnexpectedEof if e.get_ref().is_some() => Failure::fetch(Reason::Changed, e.to_string()).into(),
        ErrorKind::UnexpectedEof => Failure::fetch(Reason::Changed, "it became shorter while it was read").into(),
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::Unsupported => Fault::Refused(e.to_string()),
        _ => {
            let busy = e.get_ref().and_then(|inner| inner.downcast_ref::<Busy>());
            Fault::Passing { why: e.to_string(), after: busy.map_or(Duration::ZERO, |busy| busy.after) }
        }
    }
}

/// The way back, for readers that know of the system's errors alone.
pub(crate) fn system(fault: Fault) -> io::Error {
    match fault {
        Fault::Passing { why, after } => io::Error::other(Busy { said: why, after }),
        Fault::Refused(why) => io::Error::new(ErrorKind::PermissionDenied, why),
        Fault::Failed(f) if f.reason == Reason::Missing => io::Error::new(ErrorKind::NotFound, f.detail),
        Fault::Failed(f) => io::Error::new(ErrorKind::UnexpectedEof, f.detail),
    }
}

/// An error of a read.
pub trait Trouble: Sized {
    /// What it is.
    fn fault(&self) -> Fault;
    /// The same, with the story of how often it was met.
    fn told(self, story: &str) -> Self;
}

impl Trouble for io::Error {
    fn fault(&self) -> Fault {
        fault(self)
    }

    fn told(self, story: &str) -> Self {
        Self::new(self.kind(), format!("{self}, {story}"))
    }
}

impl Trouble for Fault {
    fn fault(&self) -> Fault {
        self.clone()
    }

    fn told(self, story: &str) -> Self {
        match self {
            Self::Passing { why, after } => Self::Passing { why: format!("{why}, {story}"), after },
            other => other,
        }
    }
}

thread_local! {
    /// What ends the waits of this thread.
    static ENDS: RefCell<Vec<Arc<AtomicBool>>> = const { RefCell::new(Vec::new()) };
    /// Whether some caller further up tries again by itself, or wants one attempt.
    static TRYING: Cell<bool> = const { Cell::new(false) };
}

/// Undoes on its way out what a thread was told, after a panic too.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Does what may wait, until `end` is set: then waits of this thread end at once.
pub fn until<T>(end: &Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    ENDS.with_borrow_mut(|ends| ends.push(end.clone()));
    let _undo = Undo(|| drop(ENDS.with_borrow_mut(Vec::pop)));
    work()
}

/// Work for other threads, whose waits end with those of this one.
pub fn handed_on<T>(work: impl Fn() -> T + Sync) -> impl Fn() -> T + Sync {
    let ends = ENDS.with_borrow(Clone::clone);
    move || {
        ENDS.set(ends.clone());
        work()
    }
}

/// Does what reads without trying again: whoever wants it will.
pub fn once<T>(work: impl FnOnce() -> T) -> T {
    let before = TRYING.replace(true);
    let _undo = Undo(|| TRYING.set(before));
    work()
}

/// Whether the waits of this thread are to end.
pub(crate) fn ended() -> bool {
    ENDS.with_borrow(|ends| ends.iter().any(|end| end.load(Ordering::Acquire)))
}

/// What a wait says that was ended.
pub(crate) fn given_up() -> io::Error {
    io::Error::other("nobody waits for it any more")
}

/// Reads, again and again while the fault may pass. `what` is read, in words. Within another such loop it reads once.
///
/// # Errors
/// The last fault.
pub fn patiently<T, E: Trouble>(
    patience: Patience,
    what: impl Fn() -> String,
    mut read: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    if TRYING.get() {
        return read();
    }
    once(|| {
        let since = Instant::now();
        let (mut attempts, mut pause, mut waiting) = (0, FIRST_PAUSE, None);
        loop {
            let e = match read() {
                Ok(found) => {
                    waiting.iter().for_each(Waiting::answered);
                    return Ok(found);
                }
                Err(e) => e,
            };
            let Fault::Passing { why, after } = e.fault() else { return Err(e) };
            attempts += 1;
            let Some(left) = patience.left(attempts, since).filter(|_| !ended()) else {
                let (s, seconds) = (if attempts == 1 { "" } else { "s" }, since.elapsed().as_secs_f32());
                return Err(e.told(&format!("after {attempts} attempt{s} in {seconds:.1} s")));
            };
            waiting.get_or_insert_with(|| Waiting::begin(what())).goes_on(why);
            sleep(jittered(pause).max(after.min(TIME)).min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
            tried_again();
        }
    })
}

fn jittered(pause: Duration) -> Duration {
    // Each of these is keyed by chance.
    let chance = RandomState::new().hash_one(0u8) as u32;
    pause.mul_f64(0.5 + 0.5 * f64::from(chance) / f64::from(u32::MAX))
}

fn sleep(time: Duration) {
    let end = Instant::now() + time;
    while !ended() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(after: Duration) -> io::Error {
        io::Error::other(Busy { said: "503".into(), after })
    }

    fn within(time: Duration) -> Patience {
        Patience { attempts: None, time }
    }

    #[test]
    fn what_lasts_is_told_after_the_time_and_not_before() {
        let (since, time) = (Instant::now(), Duration::from_millis(400));
        let e = patiently(within(time), || "x".into(), || Err::<(), _>(busy(Duration::ZERO))).expect_err("it lasts");
        assert!(since.elapsed() >= time && since.elapsed() < time * 3);
        assert!(e.to_string().starts_with("503, after "), "{e}");
    }

    #[test]
    fn what_passes_is_never_seen_and_what_cannot_pass_is_seen_at_once() {
        let mut left = 5;
        let mut passing = || {
            left -= 1;
            if left == 0 { Ok(7) } else { Err(busy(Duration::ZERO)) }
        };
        assert_eq!(patiently(Patience::new(None), || "x".into(), &mut passing).ok(), Some(7));
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::UnexpectedEof] {
            let mut reads = 0;
            let read = || {
                reads += 1;
                Err::<(), _>(io::Error::from(kind))
            };
            patiently(Patience::new(None), || "x".into(), read).expect_err("it cannot pass");
            assert_eq!(reads, 1, "{kind}");
        }
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it() {
        let (since, mut reads) = (Instant::now(), 0);
        let read = || {
            reads += 1;
            if reads == 2 { Ok(()) } else { Err(busy(Duration::from_millis(300))) }
        };
        patiently(Patience::new(None), || "x".into(), read).expect("the second time");
        assert!(since.elapsed() >= Duration::from_millis(300));
        let greedy = || Err::<(), _>(busy(Duration::MAX));
        patiently(within(Duration::from_millis(200)), || "x".into(), greedy).expect_err("no more than there is");
        assert!(since.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn loops_within_loops_multiply_nothing() {
        let mut reads = 0;
        let inner = || {
            patiently(
                Patience::new(Some(9)),
                || "x".into(),
                || {
                    reads += 1;
                    Err::<(), _>(busy(Duration::ZERO))
                },
            )
        };
        patiently(Patience::new(Some(2)), || "x".into(), inner).expect_err("it lasts");
        assert_eq!(reads, 3);
    }

    #[test]
    fn a_wait_ends_when_it_is_told_to() {
        let end = Arc::new(AtomicBool::new(false));
        let since = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                end.store(true, Ordering::Release);
            });
            let wait = || patiently(Patience::new(None), || "x".into(), || Err::<(), _>(busy(LONGEST_PAUSE)));
            until(&end, wait).expect_err("it was ended");
        });
        assert!(since.elapsed() < Duration::from_secs(2));
        assert!(!ended(), "what was told to one piece of work holds for no other");
    }
}
