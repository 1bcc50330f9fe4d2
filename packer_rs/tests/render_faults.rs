//! A panic while a batch is rendered fails that batch, and the threads live on: nobody waits for ever.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{index, jpeg, limits, plan, settings};
use navit_packer::columns::Column;
use navit_packer::render::Renderer;
use navit_packer::slots::PlannedBatch;

const LONG: Duration = Duration::from_secs(20);

fn from_source(mut batch: PlannedBatch, source: u16) -> PlannedBatch {
    batch.sequences.iter_mut().flatten().for_each(|image| image.source = source);
    batch
}

#[test]
fn a_panic_ends_its_batch_and_no_thread() {
    let folder = std::env::temp_dir().join(format!("navit-panic-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let data = jpeg(100, 90, 1);
    std::fs::write(folder.join("a.jpg"), &data).expect("a file");
    let files = vec![("a.jpg".to_owned(), 100, 90, data.len() as i64)];
    for fetchers in [0, 1] {
        let good = index(&format!("{}/", folder.display()), &files);
        // A column shorter than its index: `given` refuses it for Python, nothing does here.
        let mut short = index(&format!("{}/", folder.display()), &files);
        std::sync::Arc::get_mut(&mut short.locations).expect("its own").length = Column::from_vec(Vec::new());
        let notify = Box::new(|| panic!("the listener is broken"));
        let renderer = Renderer::new(
            settings(2, fetchers),
            limits(),
            vec![good, short],
            Arc::default(),
            false,
            Box::new(|_, _, _| 0),
            notify,
        )
        .expect("a renderer");
        let ends = |batch: PlannedBatch| {
            let mut ticket = renderer.submit(batch, false).expect("a ticket");
            ticket.wait(Instant::now() + LONG).map(|done| done.expect("somebody waits for ever").epoch)
        };
        for _ in 0..4 {
            let error = ends(from_source(plan(3, &files), 1)).expect_err("its bytes cannot be had");
            assert!(error.message.contains("fault of the engine"), "{error}");
            assert_eq!(ends(plan(3, &files)), Ok(0));
        }
        assert_eq!(renderer.stats().expect("in this process").images, 12);
    }
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}
