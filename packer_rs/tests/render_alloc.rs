//! Our own code allocates nothing per image once it is warm: a batch of many images allocates as often as one of few.
//! And nothing stays of batches that are gone, however many sizes of them were asked for. (What libjpeg-turbo and
//! libwebp take from C's allocator for themselves is not counted.)

mod common;
#[path = "common/webp.rs"]
mod webp;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{index, jpeg, limits, plan, settings};
use navit_packer::fetch::Masks;
use navit_packer::render::Renderer;
use navit_packer::slots::{BatchLimits, PlannedBatch, TargetLimits, ViewLimits, Warp};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(size.wrapping_sub(layout.size()), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn nothing_is_allocated_per_image() {
    let folder = std::env::temp_dir().join(format!("navit-alloc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let files: Vec<_> = (0..8)
        .map(|n| {
            let (width, height) = (100 + 13 * n, 90 + 11 * n);
            let quality = if n == 3 { 100.0 } else { 80.0 };
            let data = if n % 2 == 0 { jpeg(width, height, n) } else { webp::encode(width, height, quality, n > 5, 0) };
            let name = format!("{n}.img");
            std::fs::write(folder.join(&name), &data).expect("a file");
            (name, width as i32, height as i32, data.len() as i64)
        })
        .collect();
    let masks: Vec<_> = files
        .iter()
        .map(|&(ref name, width, height, _)| {
            let (name, mut data) = (format!("{name}.png"), Vec::new());
            let mut encoder = png::Encoder::new(&mut data, width as u32, height as u32);
            encoder.set_color(png::ColorType::Grayscale);
            let mut writer = encoder.write_header().expect("a header");
            writer.write_image_data(&vec![3; (width * height) as usize]).expect("samples");
            writer.finish().expect("a file");
            std::fs::write(folder.join(&name), &data).expect("a file");
            (name, width, height, data.len() as i64)
        })
        .collect();
    let turned = Warp { map: [0.8, 0.6, -0.2, -0.6, 0.8, 0.4, 0.1, 0.1, 0.9], layers: 0 };
    for (threads, fetchers, warps, cells) in
        [(1, 0, false, 0), (2, 1, false, 0), (1, 0, true, 0), (1, 0, false, 4), (2, 1, true, 2)]
    {
        let mut source = index(&format!("{}/", folder.display()), &files);
        let beside = Box::new(index(&format!("{}/", folder.display()), &masks));
        source.masks = Masks::Files { files: beside, panoptic: false, classes: 0 };
        let targets = TargetLimits { masks: cells, ..TargetLimits::default() };
        let renderer = Renderer::new(
            settings(threads, fetchers),
            BatchLimits { warps, targets, ..limits() },
            vec![source],
            Arc::default(),
            false,
            Box::new(|_, _, _| 0),
            Box::new(|| {}),
        )
        .expect("a renderer");
        let count = |images: usize| {
            let mut plan = plan(images, &files);
            if warps {
                plan.warps = vec![vec![turned; images]];
            }
            let before = COUNT.load(Ordering::Relaxed);
            let mut ticket = renderer.submit(plan, false).expect("a ticket");
            let rendered = ticket.wait(Instant::now() + Duration::from_secs(60)).expect("no error").expect("in time");
            drop((ticket, rendered));
            COUNT.load(Ordering::Relaxed) - before
        };
        for _ in 0..20 {
            count(60);
        }
        // Medians: with several threads, one of them may meet its largest image late.
        let (mut few, mut many): (Vec<_>, Vec<_>) = (0..21).map(|_| (count(2), count(60))).unzip();
        few.sort_unstable();
        many.sort_unstable();
        assert!(many[10] <= few[10] + 2, "a batch of 60 images: {many:?}, one of 2: {few:?}");
        assert!(many[10] < 20, "{many:?}");
    }
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    nothing_stays_of_batches_that_are_gone();
}

/// In the same test, since it counts what all threads hold.
fn nothing_stays_of_batches_that_are_gone() {
    let mut settings = settings(1, 0);
    settings.memory_mb = 1;
    let view = ViewLimits { sequence_length: 16, max_tokens: 16, prefix_tokens: 0 };
    let limits = BatchLimits { view, max_images: 4, ..limits() };
    let renderer =
        Renderer::new(settings, limits, Vec::new(), Arc::default(), false, Box::new(|_, _, _| 0), Box::new(|| {}))
            .expect("a renderer");
    let ask = |batch_size: usize| {
        let empty = PlannedBatch { batch_size, patch_size: 1, ..PlannedBatch::default() };
        let mut ticket = renderer.submit(empty, false).expect("a ticket");
        ticket.wait(Instant::now() + Duration::from_secs(60)).expect("no error").expect("in time");
    };
    (1..100).for_each(ask);
    let before = LIVE.load(Ordering::Relaxed);
    (100..4000).for_each(ask);
    let stays = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    // Blocks may lie idle within the renderer's bound.
    assert!(stays < 5 << 18, "{stays} bytes stay of batches that nobody holds");
}
