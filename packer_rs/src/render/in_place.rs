//! One batch from images in memory, for inference and tests. In: a planned batch, images, limits. Out: the batch;
//! nothing lasts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::fill::{check, fill};
use super::job::Job;
use super::settings::RenderSettings;
use super::worker::{Clocks, Input, Worker};
use crate::error::{Error, Kind, Result};
use crate::failure::Failure;
use crate::fetch::Source;
use crate::pixels::decode::foreign::Helpers;
use crate::render::layout::BatchLayout;
use crate::render::memory::Pool;
use crate::render::place::Places;
use crate::render::shared::Rendered;
use crate::slots::{BatchLimits, PlannedBatch};
use crate::sync::lock;

/// Renders one batch from images in memory, on as many threads as the settings say, and returns with it. The images of
/// `plan` name `inputs` by their rows; `source` holds their sizes and orientations. Makes no lasting threads, so it
/// works in any process.
pub fn render_in_place(
    plan: PlannedBatch,
    limits: &BatchLimits,
    source: Source,
    inputs: &[Input<'_>],
    settings: &RenderSettings,
    helpers: &Arc<Helpers>,
) -> Result<(Rendered, Vec<(u64, Failure)>)> {
    let sources = [source];
    check(&plan, limits, &sources)?;
    if inputs.len() < sources[0].len() {
        return Err(Error::new(Kind::Render, "fewer images than sizes"));
    }
    let layout = Arc::new(BatchLayout::new(limits, plan.patch_size, plan.batch_size)?);
    let mut block = Pool::new(0, false).take(layout.bytes)?;
    fill(&plan, &layout, limits, &sources, &mut block);
    let job = Job::new(0, plan, layout.clone(), Vec::new());
    let (clocks, next, failures) = (Clocks::default(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = || -> std::result::Result<(), Failure> {
        let mut worker = Worker::new(helpers.clone())?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(&at) = job.items.get(i) else { return Ok(()) };
            let image = job.image(i);
            let input = inputs[image.row as usize];
            // SAFETY: checked above, the block was made for the layout, and the counter gives each image to one thread.
            let mut places = unsafe { Places::of(&job.plan, at, &layout, &block) };
            if let Err(f) = worker.render(Ok(input), &[], &mut places, &sources[0], settings, &clocks) {
                if f.reason.may_pass() {
                    return Err(f);
                }
                lock(&failures).push((image.row, f));
            }
        }
    };
    let memory = |f: Failure| Error::new(Kind::Render, f.detail);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..settings.decoders().min(job.items.len())).map(|_| scope.spawn(run)).collect();
        run().map_err(memory)?;
        for other in others {
            other.join().map_err(|_| Error::new(Kind::Render, "a rendering thread panicked"))?.map_err(memory)?;
        }
        Ok(())
    })?;
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((Rendered { block: Arc::new(block), layout, epoch: job.plan.epoch, first: job.plan.first }, failures))
}
