//! Whole images for somebody else's model. In: images, the size of each and where its patches go in a tensor of floats.
//! Out: the tensor, and which images have no pixels. Apart from `in_place`: here is no plan and no batch.

use std::sync::{Arc, Mutex, PoisonError};

use super::settings::RenderSettings;
use super::worker::{Wholly, Worker};
use crate::error::{Error, Kind, Result};
use crate::failure::Failure;
use crate::pixels::decode::Decoder;
use crate::pixels::decode::foreign::Helpers;
use crate::pixels::floats::Form;
use crate::pixels::resize::Resizer;
use crate::sync::lock;

/// Renders images into tensors, and keeps the buffers of its threads from call to call: fresh memory costs as much as half
/// of the decoding of one image.
pub struct Floats {
    /// What reads the formats that no decoder here does.
    pub helpers: Arc<Helpers>,
    exact: bool,
    idle: Mutex<Vec<Worker>>,
}

impl Floats {
    /// Without a thread yet; where `exact`, from the very pixels that others see, and with their rounding.
    pub fn new(helpers: Arc<Helpers>, exact: bool) -> Self {
        Self { helpers, exact, idle: Mutex::default() }
    }

    fn worker(&self) -> std::result::Result<Worker, Failure> {
        if let Some(worker) = lock(&self.idle).pop() {
            return Ok(worker);
        }
        let helpers = self.helpers.clone();
        if self.exact {
            return Ok(Worker::with(Decoder::exact(helpers)?, Resizer::default().bytewise()));
        }
        Worker::new(helpers)
    }

    /// Renders each image, on as many threads as the settings say. Gives the numbers of those that failed, in order.
    pub fn render(
        &self,
        images: Vec<Wholly<'_>>,
        form: &Form,
        settings: &RenderSettings,
    ) -> Result<Vec<(usize, Failure)>> {
        let threads = settings.decoders().min(images.len());
        let (left, failures) = (Mutex::new(images.into_iter().enumerate()), Mutex::new(Vec::new()));
        let run = || -> std::result::Result<(), Failure> {
            let mut worker = self.worker()?;
            loop {
                let Some((n, mut image)) = lock(&left).next() else {
                    lock(&self.idle).push(worker);
                    return Ok(());
                };
                if let Err(f) = worker.floats(&mut image, form, settings) {
                    if f.reason.may_pass() {
                        return Err(f);
                    }
                    lock(&failures).push((n, f));
                }
            }
        };
        let memory = |f: Failure| Error::new(Kind::Render, f.detail);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
            run().map_err(memory)?;
            for other in others {
                other.join().map_err(|_| Error::new(Kind::Render, "a rendering thread panicked"))?.map_err(memory)?;
            }
            Ok(())
        })?;
        let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.sort_by_key(|&(n, _)| n);
        Ok(failures)
    }
}
