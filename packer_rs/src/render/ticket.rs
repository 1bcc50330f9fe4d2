//! One submitted batch, as its consumer holds it: waited for, taken once, or given up.

use std::sync::Arc;
use std::time::Instant;

use super::job::{Job, Outcome};
use super::queue::closed_error;
use super::shared::{Rendered, Shared};
use crate::error::{Error, Kind, Result};
use crate::sync::lock;

/// One submitted batch. Dropping it cancels the batch.
pub struct Ticket {
    job: Arc<Job>,
    shared: Arc<Shared>,
    taken: bool,
}

impl Ticket {
    pub(super) fn new(job: Arc<Job>, shared: Arc<Shared>) -> Self {
        Self { job, shared, taken: false }
    }

    /// Whether `wait` would return at once.
    pub fn ready(&self) -> Result<bool> {
        self.shared.same_process()?;
        Ok(!matches!(self.job.outcome(), Outcome::Running) || self.shared.queue.closed())
    }

    /// Waits until `deadline` at most; None when the batch is not finished by then.
    ///
    /// # Errors
    /// A passing fault outlasted its retries; too many images failed; the renderer was closed; the batch was taken
    /// before.
    pub fn wait(&mut self, deadline: Instant) -> Result<Option<Rendered>> {
        self.shared.same_process()?;
        if self.taken {
            return Err(Error::new(Kind::Render, "this batch was taken or cancelled before; submit it again"));
        }
        self.shared.queue.want(&self.job);
        match self.job.wait(deadline) {
            Outcome::Running if self.shared.queue.closed() => Err(closed_error()),
            Outcome::Running => Ok(None),
            Outcome::Failed(e) => Err(e),
            Outcome::Done => {
                let block = lock(&self.job.block).take().ok_or_else(closed_error)?;
                self.taken = true;
                self.shared.queue.release(&self.job);
                let (layout, plan) = (self.job.layout.clone(), &self.job.plan);
                Ok(Some(Rendered { block, layout, epoch: plan.epoch, first: plan.first }))
            }
        }
    }

    /// Gives the batch up; its images not yet begun are skipped.
    pub fn cancel(&mut self) {
        if self.taken || self.shared.same_process().is_err() {
            return;
        }
        self.taken = true;
        let unstarted = self.shared.queue.cancel(&self.job);
        if unstarted || !matches!(self.job.outcome(), Outcome::Running) {
            self.shared.queue.release(&self.job);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}
